"""From a model's name to a folder with its files, as published.

Names come from registry.py or are repositories on the hub; the folder is in the user's cache
or where the caller says. A model that is already there is not asked for again.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from twinlens.errors import ModelNotFound, TwinlensError
from twinlens.hub.cache import MANIFEST_NAME, model_folder, read_manifest
from twinlens.hub.connection import Connection
from twinlens.hub.download import (
    LOCK_NAME,
    RemoteFile,
    fetch,
    plain_disk_errors,
    require_space,
    sole_writer,
)
from twinlens.hub.registry import PublishedModel, families, find_published, get_published
from twinlens.hub.repository import (
    choose_files,
    has_tokenizer,
    parse_repo,
    read_repository,
    tokenizer_files,
)

Progress = Callable[[int, int | None], None]  # bytes here, bytes in all if known


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """What is to be fetched, before the hub has been asked about it."""

    name: str
    repo: str | None = None
    revision: str = "main"
    model: PublishedModel | None = None

    @property
    def source(self) -> str:
        if self.repo is None:
            assert self.model is not None
            return str(self.model.url)
        return f"hf:{self.repo}" + (f"@{self.revision}" if self.revision != "main" else "")


def pull(
    name: str | PublishedModel,
    folder: str | os.PathLike[str] | None = None,
    *,
    progress: Progress | None = None,
    on_wait: Callable[[], None] | None = None,
    timeout_seconds: float = 30.0,
    retries: int = 5,
) -> Path:
    """Download a published model and return its folder.

    `name` is one of ours ("openai/vit-b-32"), an alias of it, or "hf:owner/repo[@revision]" for
    any repository. Continues an earlier pull that broke off; two at once do not disturb each
    other: `on_wait` is called when this one has to wait. `retries` counts failures in a row.

    Raises ModelNotFound for a name nobody knows, CheckpointMismatch for a file that arrives
    damaged twice, and TwinlensError for what the network or the disk refuses.
    """
    wish = _wish(name)
    place = model_folder(wish.name) if folder is None else Path(folder)
    if _already_there(place, wish):
        return place
    if folder is not None:
        _require_empty(place, wish)
    connection = Connection(timeout_seconds=timeout_seconds, retries=retries)
    with plain_disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with sole_writer(place, on_wait or (lambda: None)):
        if _already_there(place, wish):
            return place  # by the other process, while we waited
        format_name, revision, files = _files(connection, wish)
        _fetch_all(files, place, connection, wish, progress)
        _write_manifest(place, wish, format_name, revision, files)
    return place


def _wish(name: str | PublishedModel) -> _Wish:
    model = name if isinstance(name, PublishedModel) else find_published(name)
    if model is None:
        assert isinstance(name, str)
        if not name.startswith("hf:"):
            get_published(name)  # raises, with what else could be meant
        repo, revision = parse_repo(name.removeprefix("hf:"))
        return _Wish(name=name, repo=repo, revision=revision)
    if model.supported:
        return _Wish(name=model.name, repo=model.repo, model=model)
    if isinstance(name, str) and name.startswith("hf:"):
        return _Wish(name=model.name, repo=model.repo)  # they insist: just the files
    raise ModelNotFound(
        f"{model.name} is known, but twinlens cannot run it: {model.unsupported}. To have the "
        f"files all the same: `twinlens pull hf:{model.repo}`."
    )


def _already_there(place: Path, wish: _Wish) -> bool:
    manifest = read_manifest(place)
    return manifest is not None and manifest["source"] == wish.source


def _require_empty(place: Path, wish: _Wish) -> None:
    """A folder that somebody named must be new, or ours: files there could be overwritten."""
    manifest = read_manifest(place)
    if manifest is not None:
        raise TwinlensError(
            f"{place} holds {manifest['name']} from {manifest['source']}. Choose another folder "
            f"for {wish.name}."
        )
    with plain_disk_errors(place):
        found = [path.name for path in place.iterdir()] if place.exists() else []
    if found and LOCK_NAME not in found:
        raise TwinlensError(
            f"{place} is not empty (it holds {sorted(found)[0]}). Choose a new folder for "
            f"{wish.name}, so that nothing of yours is overwritten."
        )


def _files(connection: Connection, wish: _Wish) -> tuple[str, str | None, list[RemoteFile]]:
    """The format, the commit and the files of what is wished for."""
    model = wish.model
    if wish.repo is None:
        assert model is not None and model.url is not None
        name = urlsplit(model.url).path.rpartition("/")[2]
        return model.format, None, [RemoteFile(name=name, url=model.url, sha256=model.sha256)]
    repository = read_repository(connection, wish.repo, wish.revision)
    format_name, files = choose_files(repository, None if model is None else model.format)
    if model is not None and model.tokenizer_repo is not None and not has_tokenizer(files):
        other = read_repository(connection, model.tokenizer_repo, "main")
        files = [*tokenizer_files(other), *files]
    return format_name, repository.revision, files


def _fetch_all(
    files: list[RemoteFile],
    place: Path,
    connection: Connection,
    wish: _Wish,
    progress: Progress | None,
) -> None:
    sizes = [file.size_bytes for file in files]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    with plain_disk_errors(place):
        here = sum(_size(place, file) for file in files)
        require_space(place, max(0, (total or 0) - here), wish.name)
    before = 0
    for file in files:

        def moved(have_bytes: int, of_bytes: int | None, before: int = before) -> None:
            if progress is not None:
                progress(before + have_bytes, of_bytes if total is None else total)

        before += fetch(file, place, connection, moved=moved).stat().st_size


def _size(place: Path, file: RemoteFile) -> int:
    """Bytes of `file` that are here, whole or in part."""
    for path in (place / file.name, place / f"{file.name}.partial"):
        if path.is_file():
            return path.stat().st_size
    return 0


def _write_manifest(
    place: Path, wish: _Wish, format_name: str, revision: str | None, files: list[RemoteFile]
) -> None:
    manifest: dict[str, Any] = {
        "name": wish.name,
        "source": wish.source,
        "revision": revision,
        "format": format_name,
        "licence": _licence(wish.model),
        "files": {
            file.name: {
                "size_bytes": (place / file.name).stat().st_size,
                "sha256": file.sha256,
                "git_oid": file.git_oid,
            }
            for file in files
        },
    }
    with plain_disk_errors(place):
        draft = place / f"{MANIFEST_NAME}.new"
        draft.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        os.replace(draft, place / MANIFEST_NAME)


def _licence(model: PublishedModel | None) -> str | None:
    family = None if model is None else families().get(model.family)
    return None if family is None else family.licence
