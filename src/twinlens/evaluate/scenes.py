"""Draws simple scenes whose right and wrong descriptions are known without people.

"a red square to the left of a blue circle", three green stars: flat shapes on a plain
background, the same for one seed everywhere. They are no photos, so that a model may fail on
them for looks alone: every set brings controls ("a red square" against "a blue square") that
say whether the shapes and colours are seen at all.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIDE = 224  # pixels
OVERSAMPLING = 2  # drawn larger and made smaller: Pillow's edges are jagged

COLOURS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 200),
    "green": (40, 150, 62),
    "yellow": (245, 205, 40),
    "purple": (128, 50, 150),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star")
BACKGROUNDS = ((255, 255, 255), (236, 236, 232), (222, 230, 238), (240, 232, 220))
NUMBER_WORDS = ("one", "two", "three", "four", "five")
COUNTING_CELLS = 3  # a grid of so many rows and columns takes up to five things

Random = np.random.Generator
Point = tuple[float, float]  # shares of the side, from the upper left


@dataclass(frozen=True)
class Thing:
    """One shape of one colour."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Placed:
    """A thing, where it is (shares of the side) and how far it reaches from there."""

    thing: Thing
    centre: Point
    radius: float


@dataclass(frozen=True, eq=False)
class ScenePair:
    """Two pictures and two captions of the same words: picture i belongs to caption i."""

    id: str
    images: tuple[Image.Image, Image.Image]
    captions: tuple[str, str]


@dataclass(frozen=True, eq=False)
class CountedScene:
    """A picture of `count` equal things, and how each count would be said."""

    id: str
    image: Image.Image
    count: int
    captions: tuple[str, ...]  # for 1, 2, ... things


# Where the first and the second thing are, by what is said of the first.
RELATIONS: dict[str, tuple[Point, Point]] = {
    "to the left of": ((0.27, 0.5), (0.73, 0.5)),
    "to the right of": ((0.73, 0.5), (0.27, 0.5)),
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "below": ((0.5, 0.73), (0.5, 0.27)),
    "on top of": ((0.5, 0.32), (0.5, 0.68)),  # they touch, with the radius below
}
PAIR_RADIUS = 0.18


def draw(things: list[Placed], background: tuple[int, int, int]) -> Image.Image:
    """The scene, SIDE pixels square."""
    side = SIDE * OVERSAMPLING
    image = Image.new("RGB", (side, side), background)
    pen = ImageDraw.Draw(image)
    for placed in things:
        x, y, radius = (value * side for value in (*placed.centre, placed.radius))
        colour = COLOURS[placed.thing.colour]
        if placed.thing.shape == "circle":
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        else:
            outline = _OUTLINES[placed.thing.shape]
            pen.polygon([(x + radius * dx, y + radius * dy) for dx, dy in outline], fill=colour)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _corners(count: int, inner: float | None = None) -> list[Point]:
    """A regular shape of radius 1 with its point up; a star has `inner` corners between."""
    radii = [1.0] if inner is None else [1.0, inner]
    steps = count * len(radii)
    turns = [2 * math.pi * step / steps - math.pi / 2 for step in range(steps)]
    return [
        (radius * math.cos(turn), radius * math.sin(turn))
        for turn, radius in zip(turns, itertools.cycle(radii), strict=False)
    ]


_OUTLINES: dict[str, list[Point]] = {
    # As high and as wide as the circle, so that "on top of" touches.
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (1, 1), (-1, 1)],
    "star": _corners(5, inner=0.42),
}


def pairs_of(kind: str, count: int, seed: int = 0) -> list[ScenePair]:
    """`count` different pairs of one of PAIR_KINDS, drawn at random from all there are."""
    random = np.random.default_rng([seed, list(PAIR_KINDS).index(kind)])
    pairs: dict[tuple[str, str], ScenePair] = {}
    attempts = 0
    while len(pairs) < count and attempts < 50 * count:
        attempts += 1
        scenes, captions = PAIR_KINDS[kind](random)
        if captions not in pairs and captions[::-1] not in pairs:
            name = f"{kind}: {captions[0]} / {captions[1]}"
            # Drawn only now: of few possible pairs most attempts are repeats.
            images = draw(*scenes[0]), draw(*scenes[1])
            pairs[captions] = ScenePair(name, images, captions)
    return list(pairs.values())


_Scene = tuple[list[Placed], tuple[int, int, int]]  # what draw() takes
_Described = tuple[tuple[_Scene, _Scene], tuple[str, str]]


def _colour_pair(random: Random) -> _Described:
    """Control: one thing, in either colour."""
    first, second = _two(COLOURS, random)
    shape = _one(SHAPES, random)
    return _single(Thing(first, shape), Thing(second, shape), random)


def _shape_pair(random: Random) -> _Described:
    """Control: one thing, of either shape."""
    first, second = _two(SHAPES, random)
    colour = _one(COLOURS, random)
    return _single(Thing(colour, first), Thing(colour, second), random)


def _single(first: Thing, second: Thing, random: Random) -> _Described:
    background = _background(random)
    alone = [([Placed(thing, (0.5, 0.5), 0.27)], background) for thing in (first, second)]
    return (alone[0], alone[1]), (f"a {first}", f"a {second}")


def _attribute_pair(random: Random) -> _Described:
    """Colours exchanged between two things that stay where they are."""
    colours, shapes = _two(COLOURS, random), _two(SHAPES, random)
    places = RELATIONS[_one(["to the left of", "above"], random)]
    background = _background(random)
    scenes, captions = [], []
    for pair in (colours, colours[::-1]):
        things = [Thing(colour, shape) for colour, shape in zip(pair, shapes, strict=True)]
        scenes.append(_scene(things, places, background))
        captions.append(f"a {things[0]} and a {things[1]}")
    return (scenes[0], scenes[1]), (captions[0], captions[1])


def _relation_pair(random: Random) -> _Described:
    """Two things in each other's place."""
    colours, shapes = _two(COLOURS, random), _two(SHAPES, random)
    things = [Thing(colour, shape) for colour, shape in zip(colours, shapes, strict=True)]
    relation = _one(list(RELATIONS), random)
    background = _background(random)
    scenes, captions = [], []
    for pair in (things, things[::-1]):
        scenes.append(_scene(pair, RELATIONS[relation], background))
        captions.append(f"a {pair[0]} {relation} a {pair[1]}")
    return (scenes[0], scenes[1]), (captions[0], captions[1])


PAIR_KINDS: dict[str, Callable[[Random], _Described]] = {
    "colour (control)": _colour_pair,
    "shape (control)": _shape_pair,
    "attributes swapped": _attribute_pair,
    "relation swapped": _relation_pair,
}


def counted_scenes(per_count: int, seed: int = 0) -> list[CountedScene]:
    """`per_count` pictures for each of 1 to 5 things, of one kind within a picture."""
    random = np.random.default_rng([seed, len(PAIR_KINDS)])
    return [
        _counted(count, number, random)
        for count in range(1, len(NUMBER_WORDS) + 1)
        for number in range(per_count)
    ]


def _counted(count: int, number: int, random: Random) -> CountedScene:
    thing = Thing(_one(COLOURS, random), _one(SHAPES, random))
    cells = random.permutation(COUNTING_CELLS**2)[:count]
    radius = float(random.uniform(0.09, 0.13))
    placed = []
    for cell in cells:
        centre = (np.array([cell % COUNTING_CELLS, cell // COUNTING_CELLS]) + 0.5) / COUNTING_CELLS
        x, y = centre + random.uniform(-0.025, 0.025, 2)  # cells stay apart
        placed.append(Placed(thing, (float(x), float(y)), radius))
    captions = tuple(f"{word} {thing}{'' if word == 'one' else 's'}" for word in NUMBER_WORDS)
    image = draw(placed, _background(random))
    return CountedScene(f"{captions[count - 1]} #{number}", image, count, captions)


def _scene(
    things: list[Thing], places: tuple[Point, Point], background: tuple[int, int, int]
) -> _Scene:
    placed = [Placed(t, place, PAIR_RADIUS) for t, place in zip(things, places, strict=True)]
    return placed, background


def _one(
    options: "list[str] | tuple[str, ...] | dict[str, tuple[int, int, int]]", random: Random
) -> str:
    names = list(options)
    return names[int(random.integers(len(names)))]


def _two(
    options: "tuple[str, ...] | dict[str, tuple[int, int, int]]", random: Random
) -> tuple[str, str]:
    names = list(options)
    first, second = random.permutation(len(names))[:2].tolist()
    return names[first], names[second]


def _background(random: Random) -> tuple[int, int, int]:
    return BACKGROUNDS[int(random.integers(len(BACKGROUNDS)))]
