"""A hub repository: which files it holds, and which of them make a model.

Takes one set of weights, safetensors before pickle, and the configuration and tokenizer that
belong to it; never the same weights twice. Fetches lists, no files.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin

from twinlens.errors import ConfigError, ModelNotFound, TwinlensError
from twinlens.hub.connection import Connection
from twinlens.hub.download import RemoteFile

LARGEST_NUMBER_OF_PAGES = 20  # of a file list, 1,000 files each
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "bpe_simple_vocab_16e6.txt.gz"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
TOKENIZER_ITSELF = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")
LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-(\d{5})\.(safetensors|bin)")
SINGLE_WEIGHTS = (".safetensors", ".npz", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository at one commit."""

    repo: str
    revision: str  # a commit where the hub names it, or else what was asked for
    files: tuple[RemoteFile, ...]


def parse_repo(text: str) -> tuple[str, str]:
    """`owner/name` and the revision of `owner/name[@revision]`. Raises ConfigError."""
    repo, _, revision = text.partition("@")
    part = r"[A-Za-z0-9][\w.-]*"
    if not re.fullmatch(f"{part}/{part}", repo, re.ASCII) or ".." in repo:
        raise ConfigError(f"{text!r} is no repository. Write hf:owner/name or hf:owner/name@tag.")
    return repo, revision or "main"


def read_repository(connection: Connection, repo: str, revision: str) -> Repository:
    """The list of files. Raises ModelNotFound when there is no such repository."""
    where = quote(revision, safe="")
    url = f"{connection.endpoint}/api/models/{repo}/tree/{where}?recursive=true"
    entries: list[Any] = []
    commit = revision
    for _ in range(LARGEST_NUMBER_OF_PAGES):
        page, headers = connection.json(url)
        if not isinstance(page, list):
            raise TwinlensError(f"{connection.host} did not answer with a list of files.")
        entries += page
        named = headers.get("X-Repo-Commit", "")
        commit = named if re.fullmatch(r"[0-9a-f]{40}", named) else commit
        following = re.search(r'<([^>]+)>;\s*rel="next"', headers.get("Link", ""))
        if following is None:
            break
        url = urljoin(url, following[1])
        if not url.startswith(f"{connection.endpoint}/"):
            break
    base = f"{connection.endpoint}/{repo}/resolve/{quote(commit, safe='')}"
    files = (_remote_file(entry, base) for entry in entries)
    return Repository(
        repo=repo, revision=commit, files=tuple(file for file in files if file is not None)
    )


def _remote_file(entry: Any, base: str) -> RemoteFile | None:
    """An entry of the hub's list; None for folders, what is in them, and names with tricks."""
    if not isinstance(entry, dict) or entry.get("type") != "file":
        return None
    name, size = entry.get("path"), entry.get("size")
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or not isinstance(size, int):
        return None
    large = entry.get("lfs")
    if isinstance(large, dict):
        sha256, size = str(large.get("oid", "")).removeprefix("sha256:"), large.get("size", size)
        return RemoteFile(
            name=name, url=f"{base}/{quote(name)}", size_bytes=size, sha256=sha256 or None
        )
    oid = entry.get("oid")
    return RemoteFile(
        name=name,
        url=f"{base}/{quote(name)}",
        size_bytes=size,
        git_oid=oid if isinstance(oid, str) else None,
    )


def choose_files(
    repository: Repository, wanted_format: str | None = None
) -> tuple[str, list[RemoteFile]]:
    """The format found, and the files that make the model, small ones first.

    Raises ModelNotFound, naming what is there, when nothing makes a model.
    """
    files = {file.name: file for file in repository.files}
    for name, choose in _FORMATS.items():
        chosen = choose(files) if wanted_format in (None, name) else []
        if chosen:
            chosen += [file for file in LICENCE_FILES if file in files]
            found = [files[file] for file in dict.fromkeys(chosen)]
            return name, sorted(found, key=lambda file: file.size_bytes or 0)
    some = ", ".join(sorted(files)[:8]) or "nothing"
    expected = f"a model in the format {wanted_format}" if wanted_format else "a model"
    raise ModelNotFound(
        f"{repository.repo} holds no {expected[2:]} that twinlens can read; it holds {some}. "
        f"Readable are OpenCLIP's, transformers', big_vision's and OpenAI's files."
    )


def tokenizer_files(repository: Repository) -> list[RemoteFile]:
    """Only what its tokenizer needs."""
    return [file for file in repository.files if file.name in TOKENIZER_FILES]


def has_tokenizer(files: Sequence[RemoteFile]) -> bool:
    return any(file.name in TOKENIZER_ITSELF for file in files)


def _tokenizer(files: dict[str, RemoteFile]) -> list[str]:
    return [name for name in TOKENIZER_FILES if name in files]


def _twinlens(files: dict[str, RemoteFile]) -> list[str]:
    if "model.json" not in files:
        return []
    kinds = (".json", ".onnx", ".data", ".txt", ".gz", ".model", ".safetensors")
    return [name for name in files if name.endswith(kinds)]


def _open_clip(files: dict[str, RemoteFile]) -> list[str]:
    weights = [name for name in OPEN_CLIP_WEIGHTS if name in files][:1]
    if "open_clip_config.json" not in files or not weights:
        return []
    return ["open_clip_config.json", *_tokenizer(files), *weights]


def _transformers(files: dict[str, RemoteFile]) -> list[str]:
    if "config.json" not in files:
        return []
    own = [name for name in ("preprocessor_config.json", "processor_config.json") if name in files]
    for weights in (["model.safetensors"], _shards(files, "safetensors")):
        if all(name in files for name in weights) and weights:
            return ["config.json", *own, *_tokenizer(files), *weights]
    for weights in (["pytorch_model.bin"], _shards(files, "bin")):
        if all(name in files for name in weights) and weights:
            return ["config.json", *own, *_tokenizer(files), *weights]
    return []


def _shards(files: dict[str, RemoteFile], kind: str) -> list[str]:
    """The index and all the parts of weights in several files; empty unless all are there."""
    stem = "model" if kind == "safetensors" else "pytorch_model"
    index = f"{stem}.{kind}.index.json"
    found = [(name, SHARD.fullmatch(name)) for name in sorted(files)]
    parts = [(name, int(part[2])) for name, part in found if part and part[3] == kind]
    whole = bool(parts) and all(count == len(parts) for _, count in parts)
    return [index, *(name for name, _ in parts)] if whole and index in files else []


def _big_vision(files: dict[str, RemoteFile]) -> list[str]:
    arrays = [name for name in files if name.endswith(".npz")]
    return [*_tokenizer(files), *arrays] if len(arrays) == 1 else []


def _single(files: dict[str, RemoteFile]) -> list[str]:
    weights = [name for name in files if name.endswith(SINGLE_WEIGHTS)]
    if any(SHARD.fullmatch(name) for name in weights):
        return []  # a part of a model is none
    return [*_tokenizer(files), *weights] if len(weights) == 1 else []


_FORMATS = {
    "twinlens": _twinlens,
    "open_clip": _open_clip,
    "transformers": _transformers,
    "big_vision": _big_vision,
    "openai_pt": _single,
}
