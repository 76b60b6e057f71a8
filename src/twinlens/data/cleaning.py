"""What is done to a text before it is split into tokens, by name: each family has its own way.

    none          nothing: the tokenizer does all itself                   BERT, XLM-R
    whitespace    repairs mojibake, resolves HTML entities,                open_clip
                  collapses white space
    clip          the same, in lower case                                  OpenAI, open_clip
    canonicalize  repairs, "_" to space, no ASCII punctuation,             open_clip
                  lower case, collapses white space
    siglip        lower case, no ASCII punctuation (nor "_"),              transformers
                  collapses white space; no repair
    lower         lower case only                                          SigLIP 2
    nfc           composed characters (NFC), white space, lower case       transformers

big_vision cleans its class names once more, keeping ",": that belongs to whoever writes the
prompts. Lone surrogates, as a file name with broken bytes brings them, become U+FFFD here.
"""

import html
import re
import string
import unicodedata
from collections.abc import Callable
from typing import Literal

Cleaning = Literal["none", "whitespace", "clip", "canonicalize", "siglip", "lower", "nfc"]

_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CANONICAL = _WITHOUT_PUNCTUATION | {ord("_"): " "}


def clean(text: str, cleaning: Cleaning) -> str:
    """`text` as the family named by `cleaning` wants it; see the table above."""
    return _CLEANERS[cleaning](text if text.isascii() else _encodable(text))


def _encodable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _repair(text: str) -> str:
    """Mojibake and HTML entities undone, white space collapsed."""
    # Nothing in plain ASCII is broken: saves the import of ftfy (70 ms) for most queries.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def _lower_each(text: str) -> str:
    """Lower case letter by letter: str.lower() makes a final sigma of a word's last letter,
    tokenizers' Lowercase does not."""
    return text.replace("\N{GREEK CAPITAL LETTER SIGMA}", "\N{GREEK SMALL LETTER SIGMA}").lower()


def _canonicalize(text: str) -> str:
    return " ".join(_repair(text).translate(_CANONICAL).lower().split())


def _siglip(text: str) -> str:
    return " ".join(text.lower().translate(_WITHOUT_PUNCTUATION).split())


def _nfc(text: str) -> str:
    return _lower_each(re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)))


_CLEANERS: dict[Cleaning, Callable[[str], str]] = {
    "none": lambda text: text,
    "whitespace": _repair,
    "clip": lambda text: _repair(text).lower(),
    "canonicalize": _canonicalize,
    "siglip": _siglip,
    "lower": _lower_each,
    "nfc": _nfc,
}
