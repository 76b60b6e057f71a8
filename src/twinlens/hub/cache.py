"""Where pulled models lie on this machine, and which of them are whole.

A folder counts as pulled once pull.py has written `pulled.json` into it, which it does last.
"""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from twinlens.hub.registry import find_published

MANIFEST_NAME = "pulled.json"


def cache_folder() -> Path:
    """TWINLENS_CACHE, or `twinlens` in the user's cache."""
    if own := os.environ.get("TWINLENS_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "twinlens"
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "twinlens"
    return Path.home() / ".cache" / "twinlens"


def model_folder(name: str) -> Path:
    """Where `name` is kept once it is pulled. Two names never share a folder."""
    model = find_published(name)
    name = name if model is None else model.name
    slug = name.replace("/", "--").replace(":", "--")
    return cache_folder() / "models" / re.sub(r"[^\w.@-]", lambda found: _escape(found[0]), slug)


def _escape(letter: str) -> str:
    return "".join(f"%{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape"))


def pulled_folder(name: str) -> Path | None:
    """The folder of a model that was pulled by this name or an alias of it, or None."""
    folder = model_folder(name)
    return folder if read_manifest(folder) is not None else None


def pulled_names() -> list[str]:
    """The names of all pulled models, sorted."""
    manifests = (read_manifest(path.parent) for path in _manifests())
    return sorted(manifest["name"] for manifest in manifests if manifest is not None)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What pull.py wrote about a folder, if all the files it names are there in full."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        sizes = {name: file["size_bytes"] for name, file in manifest["files"].items()}
        whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        known = isinstance(manifest["name"], str) and isinstance(manifest["source"], str)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return manifest if whole and known else None


def _manifests() -> list[Path]:
    try:
        return list((cache_folder() / "models").glob(f"*/{MANIFEST_NAME}"))
    except OSError:
        return []
