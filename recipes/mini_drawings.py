"""Freely licensed drawings with words for the `mini` recipe: clip art, stamps, emoji.

Photos alone teach a tower nothing about drawings. Four packages bring them, each unpacked
into one folder (`--extra`), the .deb files with `dpkg -x`, the .tgz ones with `tar xzf`:

    apt-get download openclipart-png tuxpaint-stamps-default
    npm pack emoji-datasource-google@16.0.0 emojilib@4.0.3

A drawing's words: a stamp's own sentence; an emoji's name and keywords; of clip art, the
file's name and its folder, for that is all there is.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

CLIPART = Path("usr/share/openclipart/png")
STAMPS = Path("usr/share/tuxpaint/stamps")
EMOJI = Path("package")
# Desktop icons whose names are commands, geometry, playing with gradients: words that say
# nothing of what is seen.
NO_OBJECTS = frozenset("buttons logos shapes special".split())
# A word of a file's name that stands in so many of clip art's top folders is mostly an author.
TOO_COMMON = 4


def _words(name: str) -> list[str]:
    """`handball_ball_01` to handball, ball."""
    return [word for word in re.split(r"[^a-z]+", name.lower()) if len(word) > 2]


def clipart(root: Path) -> list[tuple[Path, list[str]]]:
    """Clip art with its name, and with its name and folder."""
    paths = [
        path
        for path in sorted(root.rglob("*.png"))
        if not path.is_symlink()
        and path.relative_to(root).parts[0] not in NO_OBJECTS
        and "icons" not in path.parts
    ]
    folders = defaultdict(set)
    for path in paths:
        for word in _words(path.stem):
            folders[word].add(path.relative_to(root).parts[0])
    found = []
    for path in paths:
        name = " ".join(w for w in _words(path.stem) if len(folders[w]) < TOO_COMMON)
        folder = path.parent.name.replace("_", " ")
        if folder == "flags" or "flags" in path.parts:
            name = f"flag of {name}"
        if name:
            found.append((path, [name, f"{name}, {folder}"]))
    return found


def stamps(root: Path) -> list[tuple[Path, list[str]]]:
    """Tux Paint's stamps with the first line of the text beside them, which is English."""
    found = []
    for path in sorted(root.rglob("*.png")):
        beside = path.with_suffix(".txt")
        if beside.is_file() and not path.stem.endswith("_mirror"):
            line = beside.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
            sentence = line[0].strip().rstrip(".") if line else ""
            if sentence and "=" not in sentence:
                found.append((path, [sentence]))
    return found


def emoji(root: Path) -> list[tuple[Path, list[str]]]:
    """Google's emoji with their names and, where emojilib knows them, keywords."""
    keywords = json.loads((root / "dist" / "emoji-en-US.json").read_text(encoding="utf-8"))
    found = []
    for entry in json.loads((root / "emoji.json").read_text(encoding="utf-8")):
        path = root / "img" / "google" / "64" / entry["image"]
        if not path.is_file():
            continue
        name = (entry["name"] or entry["short_name"]).lower().replace("_", " ")
        texts = [name]
        if entry["category"] == "Flags" and name.endswith(" flag"):
            texts = [f"flag of {name.removesuffix(' flag')}"]
        character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
        words = keywords.get(character, [])
        if words:
            texts.append(", ".join(word.replace("_", " ") for word in words[:6]))
        found.append((path, texts))
    return found


def drawings(extra: Path) -> list[tuple[Path, list[str]]]:
    """Every drawing's file and texts, in one order on every machine.

    Stops with the commands above where a package is missing.
    """
    found = []
    for folder, read in ((CLIPART, clipart), (STAMPS, stamps), (EMOJI, emoji)):
        if not (extra / folder).is_dir():
            raise SystemExit(f"{extra / folder} is missing. {__doc__}")
        found += read(extra / folder)
    return found
