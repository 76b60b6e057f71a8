"""Checkpoints of a run: all that the next step depends on, whole or not there at all.

A checkpoint is a folder under `checkpoints/`: `model/` (the model as it would be used:
averaged, adapters merged), `live.safetensors` (what learns, as it is), `optimizer.safetensors`,
`adapter.safetensors` with LoRA, `average.safetensors` with a moving average,
`follower.safetensors` where teachers' embeddings are of another width, and `state.json` with
the step, the position in the data and the size of every file. It is written beside its place,
flushed to the disk and renamed; the next best is read when one is damaged.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from twinlens.errors import TwinlensError

STATE_NAME = "state.json"
FORMAT = 1
Say = Callable[[str], None]


@dataclass
class Saved:
    """What a checkpoint holds besides the model; tensors are whole and on the CPU."""

    step: int  # steps done
    facts: dict[str, Any]  # plain values
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by file


def checkpoint_name(step: int) -> str:
    return f"step_{step:08}"


def write_saved(
    folder: Path, saved: Saved, write_model: Callable[[Path], None], *, say: Say
) -> bool:
    """Write a checkpoint below `folder`; False, and a sentence to `say`, if it cannot be.

    What was there before stays, so a full disk costs a checkpoint and not the run.
    """
    partial = folder / f".{checkpoint_name(saved.step)}.partial"
    target = folder / checkpoint_name(saved.step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_model(partial / "model")
        for name, tensors in saved.tensors.items():
            # Filters may lie in channels_last order, which the format does not know.
            contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
            save_file(contiguous, partial / f"{name}.safetensors")
        sizes = {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)}
        values = {"format": FORMAT, "step": saved.step, **saved.facts, "files": sizes}
        (partial / STATE_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        for path in (*_files(partial), partial / "model", partial):
            _flush(path)
        shutil.rmtree(target, ignore_errors=True)  # damaged, or it would have been read
        partial.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        kept = next(iter(_newest_first(folder)), None)
        say(
            f"The checkpoint of step {saved.step:,} could not be written to {folder} ({reason}); "
            + (f"{kept.name} is the last one." if kept else "there is none yet.")
        )
        return False
    return True


def read_saved(folder: Path, *, say: Say) -> tuple[Saved, Path] | None:
    """The newest whole checkpoint below `folder` and its place; None where there is none.

    Each damaged one that is passed over is named to `say`.
    """
    for place in _newest_first(folder):
        try:
            return _read(place), place
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            say(f"{place} is damaged and is passed over: {error}.")
    return None


def keep_last(folder: Path, count: int, also: Path | None) -> None:
    """Delete all but the last `count` checkpoints and the one at `also`."""
    best = None if also is None or not also.exists() else also.resolve()
    for place in list(_newest_first(folder))[count:]:
        if best is None or best not in (place.resolve(), (place / "model").resolve()):
            shutil.rmtree(place, ignore_errors=True)
    for partial in folder.glob(".step_*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def point(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`, at once; a copy where links are not possible."""
    partial = link.with_name(f".{link.name}.partial")
    if partial.is_symlink() or partial.exists():
        partial.unlink()
    try:
        partial.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)
        partial.replace(link)
    except OSError as error:
        if link.is_symlink():
            raise TwinlensError(
                f"{link} could not be made to lead to {target} ({error.strerror})."
            ) from error
        shutil.rmtree(link, ignore_errors=True)
        shutil.copytree(target, link)


def _read(place: Path) -> Saved:
    values = json.loads((place / STATE_NAME).read_text(encoding="utf-8"))
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']}, this version reads {FORMAT}")
    for name, size in values["files"].items():
        found = (place / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found:,} bytes of {size:,}")
    tensors = {path.stem: load_file(path) for path in sorted(place.glob("*.safetensors"))}
    facts = {k: v for k, v in values.items() if k not in ("format", "step", "files")}
    return Saved(int(values["step"]), facts, tensors)


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted((p for p in folder.glob("step_*") if p.is_dir()), reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush(path: Path) -> None:
    """Onto the disk, file or folder: a rename must not arrive before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
