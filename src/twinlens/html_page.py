"""The frame that every HTML page of this package stands in, and the look they share.

A page is one file that needs nothing else to be seen. It forbids itself scripts and
requests, and shows words only `escaped`: names and captions are anyone's work.
"""

from html import escape

from twinlens.text import printable

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1b1b1a;
  --faint: #6d6d69; --mat: #ebebe7; --line: #e2e2dd; --bar: #5b7fa6; --bad: #b3402e;
  --good: #2f7d54; --orange: #c5792c; --green: #3f8a63; --violet: #8a63ad; --grey: #7d7d78; }
@media (prefers-color-scheme: dark) { :root { --page: #161615; --card: #1f1f1e; --ink: #ececea;
  --faint: #9a9a95; --mat: #282826; --line: #30302e; --bar: #7fa3cb; --bad: #e88775;
  --good: #74c598; --orange: #e0a160; --green: #6fbd93; --violet: #b795d6; --grey: #a3a39d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem);
  background: var(--page); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.6rem; font-weight: 600; overflow-wrap: anywhere; }
.faint { color: var(--faint); }
figure { margin: 0; overflow: hidden; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def html_page(title: str, style: str, body: str) -> str:
    """A whole page; `style` adds to the shared rules or overrides them, `body` is HTML."""
    return _PAGE.format(title=escaped(title), style=_STYLE + style, body=body)


def escaped(text: str) -> str:
    """Anyone's words as HTML, in an attribute too."""
    return escape(printable(text))
