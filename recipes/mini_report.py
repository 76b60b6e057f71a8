"""Step 4 of the `mini` recipe: how good the files that ship are, in figures.

Everything goes through `Embedder`, as a user's pictures do. Flickr8k test is read
here and nowhere else in the recipe: nothing may be chosen by it.

    python recipes/mini_report.py --shared ../shared [--model mini] [--json FILE]
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mini_data import CLOTHING_TRAIN_BELOW, clean_caption, clean_name
from twinlens.data.shards import Sample, read_shards
from twinlens.embed import Embedder
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.runtime.session import unit_rows

TEMPLATES = ("{}", "a photo of a {}", "a picture of a {}", "a close-up of a {}", "the {}")
# The ten labels that the clothing data set's authors use for their small set.
CLOTHING_10 = tuple("Dress Hat Longsleeve Outwear Pants Shirt Shoes Shorts Skirt T-Shirt".split())


class LabelledSet(NamedTuple):
    """Shards below SHARED/data, and which of their pictures count."""

    pattern: str
    first_key: int = 0
    end_key: int | None = None  # None: to the end
    odd: bool | None = None  # only odd keys, or only even ones
    only: tuple[str, ...] | None = None  # labels

    def samples(self, shared: Path) -> list[Sample]:
        """The pictures that count, in the shards' order."""
        paths = sorted((shared / "data").glob(self.pattern))
        if not paths:
            raise SystemExit(f"no shard matches {self.pattern} in {shared / 'data'}")
        return [sample for sample in read_shards(paths) if self._counts(sample)]

    def _counts(self, sample: Sample) -> bool:
        key = int(sample.key)
        return (
            key >= self.first_key
            and (self.end_key is None or key < self.end_key)
            and (self.odd is None or key % 2 == self.odd)
            and (self.only is None or sample.info["name"] in self.only)
        )


CLOTHING_HELD_OUT = LabelledSet("clothing/all-*.tar.gz", first_key=CLOTHING_TRAIN_BELOW)
TINY_VAL = LabelledSet("tinyimagenet/val-*.tar.gz")
LABELLED = {
    "imagenette val (10-way)": LabelledSet("imagenette/val-*.tar"),
    "tinyimagenet val (200-way)": TINY_VAL,
    "clothing, keys from 1200 (17-way)": CLOTHING_HELD_OUT,
    "clothing, keys from 1200 (10-way)": CLOTHING_HELD_OUT._replace(only=CLOTHING_10),
    "scenes val (6-way)": LabelledSet("scenes/val-*.tar.gz"),
}


def retrieval(embedder: Embedder, shared: Path, split: str) -> dict[str, float]:
    """recall@k of one Flickr8k split, captions as they are typed by people."""
    samples = list(read_shards(sorted((shared / "data" / "flickr8k").glob(f"{split}-*.tar"))))
    captions = [clean_caption(c) for sample in samples for c in sample.info["captions"]]
    owner = np.repeat(np.arange(len(samples)), [len(s.info["captions"]) for s in samples])
    images = embedder.images([sample.image for sample in samples])
    return retrieval_scores(images @ embedder.texts(captions).T, owner)


def label_vectors(embedder: Embedder, names: list[list[str]]) -> np.ndarray:
    """One unit vector a label: the mean over synonyms and templates (CLIP, section 3.1.4)."""
    rows = []
    for synonyms in names:
        vectors = embedder.texts([t.format(name) for name in synonyms for t in TEMPLATES])
        rows.append(vectors.mean(axis=0))
    return unit_rows(np.stack(rows))


def zero_shot_accuracy(embedder: Embedder, shared: Path, chosen: LabelledSet) -> float:
    """Share of pictures whose own label's text is the closest."""
    samples = chosen.samples(shared)
    names = {
        s.info["label"]: [clean_name(n) for n in s.info.get("names") or [s.info["name"]]]
        for s in samples
    }
    labels = sorted(names)
    texts = label_vectors(embedder, [names[label] for label in labels])
    scores = embedder.images([sample.image for sample in samples]) @ texts.T
    predicted = np.array(labels)[scores.argmax(axis=1)]
    return float((predicted == np.array([s.info["label"] for s in samples])).mean())


def report(
    model: str, shared: Path, labelled: Mapping[str, LabelledSet] = LABELLED
) -> dict[str, float]:
    """Every figure of the model card."""
    embedder = Embedder(model)
    figures = {
        f"flickr8k test {name}": value
        for name, value in retrieval(embedder, shared, "test").items()
    }
    for name, chosen in labelled.items():
        figures[f"{name} accuracy"] = zero_shot_accuracy(embedder, shared, chosen)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = report(arguments.model, arguments.shared)
    for name, value in figures.items():
        print(f"{name:60} {value:.4f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
