"""Any checkpoint to a runtime folder, which is written only if it computes the same.

The exported towers are compared with the PyTorch ones on the package's own photos and
their captions, then the smaller precision with the exported ones; a folder that differs
by more than LIMITS is not kept. Exporting, quantising and comparing are in files of
their own. Needs the extra `train`.
"""

import csv
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from twinlens import SAMPLES
from twinlens.config import Activation
from twinlens.data.image import read_image
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import Tokenizer, open_tokenizer, tokenizer_files
from twinlens.errors import CheckpointMismatch, ConfigError, ModelNotFound, require_package
from twinlens.hub.cache import cache_folder
from twinlens.runtime.folder import CONFIG_NAME, RuntimeConfig, locate
from twinlens.runtime.load import load_checkpoint_at, preprocess_config, tokenizer_config
from twinlens.runtime.session import Session, open_session, unit_rows
from twinlens.runtime.verify import Agreement, agreement

Precision = Literal["fp32", "fp16", "int8"]

# Cosines to the tower before: fp32 to PyTorch, the others to fp32. Exports agree to 1e-6 or so.
LIMITS: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.99}
BATCH = 8
HELD_OUT = 3  # every third photo
CONVERTER = 1  # raised when the same checkpoint would be converted to something else

Report = Callable[[str], None]


@dataclass(frozen=True)
class Conversion:
    """What was written, and how near it is to the PyTorch towers."""

    folder: Path
    precision: Precision
    image: Agreement
    text: Agreement
    size_bytes: int
    image_query_weight: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def convert(
    source: str | os.PathLike[str],
    target: Path,
    *,
    precision: Precision = "fp32",
    name: str | None = None,
    overwrite: bool = False,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    activation: Activation | None = None,
    image_size: int | None = None,
    say: Report = lambda message: None,
) -> Conversion:
    """Write the model at `source` as a runtime folder `target`.

    The keywords after `overwrite` are load_model's. `say` is told each step.

    Raises CheckpointMismatch when what would be written differs from the PyTorch towers, and
    whatever load_model raises. Nothing is left at `target` then.
    """
    require_package("torch", extra="train", purpose="converting a checkpoint")
    require_package("onnx", extra="train", purpose="converting a checkpoint")
    place = locate(source)
    if (place / CONFIG_NAME).is_file():
        raise ConfigError(f"{place} is a runtime folder already.")
    target = Path(target)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is there already: give another folder, or --overwrite.")
    say(f"reading {place}")
    overrides: dict[str, Any] = {
        "vision_heads": vision_heads,
        "text_heads": text_heads,
        "activation": activation,
        "image_size": image_size,
    }
    model, published = load_checkpoint_at(place, **overrides)
    preprocess = preprocess_config(place, published)
    tokens, tokens_folder = tokenizer_config(place, published)
    tokenizer = open_tokenizer(tokens, tokens_folder)
    inputs = Samples(preprocess, tokenizer)
    with _appearing(target) as folder:
        conversion = _write(model, inputs, folder, precision, say)
        for file in tokenizer_files(tokens):
            shutil.copyfile(tokens_folder / file, folder / file)
        bias = model.logit_bias
        RuntimeConfig(
            format_version=1,
            name=name or _name_of(source, place),
            version="1",
            dim=model.config.dim,
            tokenizer=tokens,
            image_file="image.onnx",
            text_file="text.onnx",
            preprocess=preprocess,
            logit_scale=float(model.logit_scale.item()),
            logit_bias=None if bias is None else float(bias.item()),
            image_query_weight=round(conversion.image_query_weight, 4),
            precision=precision,
            fingerprint=_fingerprint(folder),
        ).write(folder / CONFIG_NAME)
    return replace(conversion, folder=target)


class Samples:
    """The package's photos and their captions, as one model takes them."""

    def __init__(self, preprocess: Preprocess, tokenizer: Tokenizer) -> None:
        with (SAMPLES / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.pixels: Float32[np.ndarray, "item 3 height width"] = np.stack(
            [
                preprocess(read_image(SAMPLES / row["file"], target_size=preprocess.resized_side))
                for row in rows
            ]
        )
        captions = [row["what"] for row in rows]
        # One that fills the context and an empty one, beside those that people write.
        captions += ["", " ".join(captions)]
        ids = [tokenizer.truncate(tokenizer.encode(caption)) for caption in captions]
        self.ids: Int64[np.ndarray, "item token"] = tokenizer.pad(ids)

        # int8 is judged by photos that its ranges were not fitted to.
        fitted = np.arange(len(self.pixels)) % HELD_OUT != 0
        self.calibration = _batches(self.pixels[fitted])
        self.held_out = _batches(self.pixels[~fitted])

    def of(self, side: str) -> list[np.ndarray]:
        """Every sample of one side, in batches."""
        return _batches(self.pixels if side == "image" else self.ids)


def _batches(items: np.ndarray) -> list[np.ndarray]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _write(
    model: Any, inputs: Samples, folder: Path, precision: Precision, say: Report
) -> Conversion:
    from twinlens.runtime.export import export_towers, torch_tower
    from twinlens.runtime.simplify import simplify_tower

    whole = folder if precision == "fp32" else folder / "fp32"
    whole.mkdir(exist_ok=True)
    say("exporting both towers")
    raw = {side: whole / f"{side}.raw.onnx" for side in ("image", "text")}
    export_towers(model, raw["image"], raw["text"], context=inputs.ids.shape[1])
    batches = {side: inputs.of(side) for side in raw}
    encode = {"image": model.encode_image, "text": model.encode_text}
    results = {}
    vectors = {}
    for side, path in raw.items():
        simplify_tower(path, whole / f"{side}.onnx", batches[side][0])
        path.unlink()
        exported = open_session(whole / f"{side}.onnx")
        say(f"comparing the {side} tower with PyTorch's on {sum(map(len, batches[side]))}")
        reference = torch_tower(encode[side])
        results[side] = _agreed(side, "fp32", reference, exported, batches[side])
        if precision != "fp32":
            say(f"making the {side} tower {precision}")
            source, small = whole / f"{side}.onnx", folder / f"{side}.onnx"
            exported, results[side] = _reduced(
                side, precision, source, exported, small, inputs, say
            )
        vectors[side] = unit_rows(np.concatenate([exported.run(b) for b in batches[side]]))
    if precision != "fp32":
        shutil.rmtree(whole)
    return Conversion(
        folder=folder,
        precision=precision,
        image=results["image"],
        text=results["text"],
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        image_query_weight=_image_query_weight(vectors["image"], vectors["text"]),
    )


def _agreed(
    side: str,
    precision: Precision,
    reference: Any,
    session: Session,
    batches: list[np.ndarray],
) -> Agreement:
    """The agreement of two towers. Raises CheckpointMismatch when it is below the limit."""
    result = agreement(reference, session.run, batches)
    cosine = result.mean_cosine if precision == "int8" else result.min_cosine
    if not cosine >= LIMITS[precision]:
        raise CheckpointMismatch(
            f"The {side} tower in {precision} differs from the one it was made of: cosine "
            f"{cosine:.5f} on the package's samples, at least {LIMITS[precision]} is wanted."
        )
    return result


def _reduced(
    side: str,
    precision: Precision,
    source: Path,
    opened: Session,
    target: Path,
    inputs: Samples,
    say: Report,
) -> tuple[Session, Agreement]:
    """The smaller tower, opened, and how near it is to the one at `source`, which `opened` runs."""
    from twinlens.runtime import quantize

    whole = opened.run
    held_out = inputs.held_out if (side, precision) == ("image", "int8") else inputs.of(side)
    if precision == "fp16":
        quantize.to_float16(source, target)
    elif side == "image":
        try:
            quantize.quantize_image_tower(source, target, iter(inputs.calibration))
            session = open_session(target)
            return session, _agreed(side, precision, whole, session, held_out)
        except CheckpointMismatch as error:
            # Ranges found anew for each row suffer no surprise, at half the speed.
            say(f"{error} Ranges are not fixed then, which is slower.")
            quantize.quantize_blocks(source, target)
    else:
        quantize.quantize_text_tower(source, target)
    session = open_session(target)
    return session, _agreed(side, precision, whole, session, held_out)


def _image_query_weight(
    image: Float32[np.ndarray, "item dim"], text: Float32[np.ndarray, "caption dim"]
) -> float:
    """How much less words spread photos than a photo does (TRAPS, "Query arithmetic")."""
    apart = ~np.eye(len(image), dtype=bool)
    spread = float((image @ image.T)[apart].std())
    return float((image @ text[: len(image)].T).std()) / spread if spread > 0 else 1.0


def _fingerprint(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _name_of(source: str | os.PathLike[str], place: Path) -> str:
    """A short name: the folder's, or the file's without its suffix."""
    text = os.fspath(source)
    if not os.path.exists(text):
        return text  # a pulled model's name
    place = place.resolve()
    return place.name if place.is_dir() else place.stem


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes `target` at the end, or vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp's is for its owner alone
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            target.rename(old / target.name)
            folder.rename(target)
            shutil.rmtree(old)
        else:
            folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def ready_folder(
    name_or_path: str | os.PathLike[str], *, say: Report = lambda message: None
) -> Path:
    """A runtime folder for any model: as it is, or converted once to fp32 in the user's cache.

    Raises what convert raises, and ModelNotFound.
    """
    place = locate(name_or_path)
    if (place / CONFIG_NAME).is_file():
        return place
    try:
        weights = sorted(p for p in place.iterdir() if p.is_file()) if place.is_dir() else [place]
        state = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in weights]
    except OSError as error:
        raise ModelNotFound(f"{place} cannot be read ({error.strerror}).") from error
    key = hashlib.blake2b(
        repr((CONVERTER, str(place.resolve()), state)).encode(), digest_size=8
    ).hexdigest()
    slug = re.sub(r"[^\w.@-]+", "-", _name_of(name_or_path, place))
    target = cache_folder() / "converted" / f"{slug}-{key}"
    if not (target / CONFIG_NAME).is_file():
        say(f"converting {place} once; it is kept in {target}")
        convert(place, target, name=_name_of(name_or_path, place), overwrite=True, say=say)
    return target
