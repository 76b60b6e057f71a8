"""Reads a query, words and pictures added and subtracted, and makes one vector of it.

The syntax is rclip's: `"a dog" + snow - car.jpg`, each part with an optional weight as in
`2:dog`. Unlike rclip's, the sum has unit length, so that the score is a cosine, and
pictures are scaled before they are added to words (see `query_vector`).
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from twinlens.data.image import IMAGE_SUFFIXES, ImageSource, source_name
from twinlens.embed import EmbedderLike, Skipped
from twinlens.errors import QueryError, UnreadableImage

# A digit after the colon means no weight: "16:9", "at 10:30" are words.
_WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+):(?!\d)(.*)", re.DOTALL)
CANCELLED_LENGTH = 1e-3  # of a sum whose parts have total length 1


@dataclass(frozen=True)
class Term:
    """One part of a query; a negative `weight` subtracts it."""

    weight: float
    kind: Literal["text", "image"]
    value: ImageSource  # the words, or where the picture is


def parse_query(words: Sequence[str]) -> list[Term]:
    """The terms of a query given as separate arguments, `+` and `-` standing alone.

    Neighbouring words are one text, so that `a red car` needs no quotes. A part that
    names a file with a picture's suffix is that picture.

    Raises QueryError when nothing follows an operator, when there is nothing at all, or
    when something called like a picture file does not exist.
    """
    terms: list[Term] = []
    sign, part = 1.0, list[str]()
    operator = ""
    for word in [*words, "+"]:
        if word not in ("+", "-"):
            part.append(word)
            continue
        text = " ".join(part).strip()
        if text:
            terms.append(parse_term(text, sign))
        elif terms or operator:
            raise QueryError(f"nothing follows the {operator} in the query.")
        sign, part, operator = (1.0 if word == "+" else -1.0), [], word
    if not terms:
        raise QueryError('the query is empty. Say what to look for: "a dog on the beach".')
    return terms


def parse_term(text: str, sign: float = 1.0) -> Term:
    """One part, such as `2:dog`, `a dog` or `photos/car.jpg`."""
    weight = sign
    if match := _WEIGHT.fullmatch(text):
        weight *= float(match[1])
        text = match[2].strip()
    if not text:
        raise QueryError("a part of the query has a weight but no words.")
    if weight == 0:
        raise QueryError(f"the weight 0 makes {text!r} mean nothing; leave it out.")
    if os.path.splitext(text)[1].lower() not in IMAGE_SUFFIXES:
        return Term(weight, "text", text)
    path = os.path.expanduser(text)
    if not os.path.isfile(path):
        raise QueryError(f"{text} is called like a picture, but there is no such file.")
    return Term(weight, "image", path)


def describe(terms: Sequence[Term]) -> str:
    """The query as it could be typed: `a dog + 2:snow - car.jpg`."""
    described = ""
    for term in terms:
        name = source_name(term.value) if term.kind == "image" else str(term.value)
        weight = f"{abs(term.weight):g}:" if abs(term.weight) != 1 else ""
        sign = "-" if term.weight < 0 else "+" if described else ""
        described += f" {sign} {weight}{name}"
    return described.strip()


def query_vector(embedder: EmbedderLike, terms: Sequence[Term]) -> Float32[np.ndarray, " dim"]:
    """The weighted sum of the terms' embeddings, of unit length.

    Cosines between pictures spread wider than those between a picture and words, so at
    equal weights a picture would decide the order alone. Its embedding is multiplied by the
    ratio of the two spreads, which the model knows as `image_query_weight`.

    Raises UnreadableImage for a picture that cannot be read, and QueryError when the
    terms cancel out.
    """
    texts = [str(term.value) for term in terms if term.kind == "text"]
    images = [term.value for term in terms if term.kind == "image"]
    skipped: list[Skipped] = []
    # Not even asked for what is not there: asking would load a tower.
    text_vectors = iter(embedder.texts(texts) if texts else ())
    image_vectors = iter(embedder.images(images, skipped=skipped) if images else ())
    if skipped:
        raise UnreadableImage(skipped[0].source, skipped[0].reason)
    total = np.zeros(embedder.dim, dtype=np.float32)
    length_of_parts = 0.0
    for term in terms:
        is_text = term.kind == "text"
        weight = term.weight if is_text else term.weight * embedder.image_query_weight
        total += np.float32(weight) * next(text_vectors if is_text else image_vectors)
        length_of_parts += abs(weight)
    length = float(np.linalg.norm(total))
    if length <= CANCELLED_LENGTH * length_of_parts:
        raise QueryError(f"the parts of the query cancel out: {describe(terms)}.")
    return total / np.float32(length)
