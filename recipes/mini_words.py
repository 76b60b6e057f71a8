"""The words that `mini` learns: captions, templates, ImageNet's classes, object names.

Two lists of names stay the same in every step and are told apart as a whole: the 1,000
classes of the image tower's own classifier, and the objects whose CLIP text vectors lie in
`clip_embeddings`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from mini_data import clean_name
from twinlens.data.wordpiece import WordPieceTokenizer

TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "a small photo of a {}",
    "a blurry photo of a {}",
    "a close-up of a {}",
    "the {}",
    "one {}",
    "there is a {} in the picture",
    "a {} in the scene",
    "a low resolution photo of the {}",
)
CLOTHING_TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a {} lying on the floor",
    "a {} on a bed",
    "a piece of clothing: {}",
    "clothes, a {}",
)
DRAWING_TEMPLATES = (
    "{}",
    "a drawing of {}",
    "clip art: {}",
    "an illustration of {}",
    "an icon of {}",
    "a cartoon of {}",
)
STOP_WORDS = frozenset(
    "a an the is are of in on at to and with his her their its as while some".split()
)


def imagenet_texts() -> list[tuple[list[str], str]]:
    """(synonyms, definition) of the classifier's 1,000 classes, from WordNet 3.0."""
    lines = (Path(__file__).parent / "imagenet_classes.tsv").read_text().splitlines()[1:]
    rows = [line.lower().split("\t") for line in lines]
    return [(names.split(", "), definition) for _, names, definition in rows]


@dataclass
class ClipNames:
    """Objects' names and what OpenAI's ViT-B/32 makes of them and of some photos."""

    names: list[str]
    logits: Float[Tensor, "photo name"]  # CLIP's, of the photos that it has a vector of
    of_row: dict[int, int]  # a training photo's row to its row in `logits`

    @classmethod
    def read(cls, folder: Path, files: list[str]) -> "ClipNames":
        """`files` are the training photos' names in order; others' vectors are left alone."""
        vectors: dict[str, Tensor] = {}
        for path in sorted(folder.glob("text_*_a_name.npz")):
            data = np.load(path, allow_pickle=False)
            for name, vector in zip(data["names"], data["vectors"], strict=True):
                spelt = clean_name(str(name).split("(")[0].replace("/", " or "))
                vectors.setdefault(spelt, torch.from_numpy(vector).float())
        text = normalize(torch.stack(list(vectors.values())), dim=-1)
        row_of = {name: row for row, name in enumerate(files)}
        rows, found = [], []
        for path in sorted(folder.glob("flickr8k_*_images.npz")):
            data = np.load(path, allow_pickle=False)
            for name, vector in zip(data["files"], data["vectors"], strict=True):
                if str(name) in row_of:
                    rows.append(row_of[str(name)])
                    found.append(torch.from_numpy(vector).float())
        # 100: the scale that CLIP ended its training with.
        logits = 100 * normalize(torch.stack(found), dim=-1) @ text.T
        return cls(list(vectors), logits, {row: place for place, row in enumerate(rows)})


class Words:
    """Draws training texts; one random generator, so that a run can be repeated."""

    def __init__(self, tokenizer: WordPieceTokenizer, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tokenizer = tokenizer
        self.imagenet = imagenet_texts()

    def pick(self, options: list[str] | tuple[str, ...]) -> str:
        return options[int(self.random.integers(len(options)))]

    def captions(self, captions: list[str], count: int) -> list[str]:
        """Different captions of one photo, now and then as keywords, as people search."""
        chosen = []
        for row in self.random.permutation(len(captions))[:count]:
            caption = captions[row]
            if self.random.random() < 0.15:
                words = [w for w in caption.lower().split() if w not in STOP_WORDS]
                caption = " ".join(words) or caption
            chosen.append(caption)
        return chosen

    def imagenet_text(self, label: int) -> str:
        synonyms, definition = self.imagenet[label]
        text = self.pick(TEMPLATES).format(self.pick(synonyms))
        return f"{text}, {definition}" if self.random.random() < 0.25 else text

    def tokens(self, texts: list[str]) -> Tensor:
        ids = [self.tokenizer.truncate(self.tokenizer.encode(text)) for text in texts]
        return torch.from_numpy(self.tokenizer.pad(ids))
