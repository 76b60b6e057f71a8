"""What the recipes beside `mini` share: training shards, held-out figures and their memory.

Raw shards become plain ones with names as one would type them, cut where the data's README
cuts them; a checkpoint becomes figures by way of `Embedder`, as a user's pictures go.
How accuracy is measured is mini_report.py's business.
"""

import io
import json
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from mini_data import CLOTHING_TRAIN_BELOW, clean_name
from mini_report import TEMPLATES, LabelledSet
from twinlens.data.image import IMAGE_SUFFIXES
from twinlens.data.pairs import ShardSource
from twinlens.data.shards import Sample
from twinlens.runtime.convert import convert

Figures = dict[str, float]

QUICK_EVERY = 25  # of the samples of a set, in the recipes' --quick forms


TINY_TRAIN = LabelledSet("tinyimagenet/train-*.tar.gz")
CLOTHING_TRAIN = LabelledSet("clothing/all-*.tar.gz", end_key=CLOTHING_TRAIN_BELOW)


def write_shard(samples: Iterable[Sample], path: Path) -> int:
    """A plain tar of labelled samples, whole or not at all; how many there are.

    Plain, because a gzipped one is unpacked again in each epoch and its samples are not
    counted beforehand. Each says `names`, its label's synonyms in plain words, and `name`, the
    first of them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    count = 0
    with tarfile.open(partial, "w") as tar:
        for sample in samples:
            names = sample.info.get("names") or [sample.info["name"]]
            names = [clean_name(name) for name in names]
            info = {"label": sample.info["label"], "names": names, "name": names[0]}
            _add(tar, f"{sample.key}.jpg", sample.image)
            _add(tar, f"{sample.key}.json", json.dumps(info).encode())
            count += 1
    partial.replace(path)
    return count


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def training_source(chosen: LabelledSet, shared: Path, path: Path) -> ShardSource:
    """`chosen` as a source of pairs in `path`: a random synonym in a random template each time.

    Labels are the positives: pictures of one label are no negatives of each other.
    """
    if not path.exists():
        write_shard(chosen.samples(shared), path)
    return ShardSource(shards=(str(path),), caption_fields=("names",), templates=TEMPLATES)


def validation_source(chosen: LabelledSet, shared: Path, path: Path) -> ShardSource:
    """`chosen` with one caption a picture: its label's first name in the plain template."""
    if not path.exists():
        write_shard(chosen.samples(shared), path)
    return ShardSource(
        shards=(str(path),), caption_fields=("name",), templates=("a photo of a {}",)
    )


def quick_copy(shared: Path, target: Path, every: int = QUICK_EVERY) -> Path:
    """Every `every`-th sample of each shard that the recipes read, under the same names.

    For trying a recipe out. The copy is for the same uses as what it was made of, no others.
    """
    for path in sorted((shared / "data").glob("*/*.tar*")):
        copy = target / "data" / path.relative_to(shared / "data")
        if copy.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        partial = copy.with_name(f".{copy.name}.partial")
        with tarfile.open(path, "r|*") as source, tarfile.open(partial, "w") as tar:
            for member in source:
                key, _, suffix = member.name.rpartition(".")
                known = f".{suffix}" in IMAGE_SUFFIXES or suffix == "json"
                if known and int(key) % every == 0 and (file := source.extractfile(member)):
                    _add(tar, member.name, file.read())
        partial.replace(copy)
    return target


def commonest_share(shared: Path, chosen: LabelledSet) -> float:
    """What naming the commonest label for every picture would score."""
    labels = Counter(sample.info["label"] for sample in chosen.samples(shared))
    return max(labels.values()) / labels.total()


def remembered_figures(
    checkpoint: Path, memory: Path, measure: Callable[[Path], Figures]
) -> Figures:
    """`measure` of the checkpoint as a runtime folder, or what `memory` holds of these weights.

    The runtime folder is removed again. Raises what twinlens.runtime.convert.convert raises.
    """
    weights = (checkpoint / "weights.safetensors").stat()
    mark = [weights.st_size, weights.st_mtime_ns]
    if memory.exists():
        saved = json.loads(memory.read_text(encoding="utf-8"))
        if saved["weights"] == mark:
            return dict(saved["figures"])
    memory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=memory.parent) as folder:
        runtime = Path(folder) / "model"
        convert(checkpoint, runtime)
        figures = measure(runtime)
    memory.write_text(
        json.dumps({"weights": mark, "figures": figures}, indent=2) + "\n", encoding="utf-8"
    )
    return figures
