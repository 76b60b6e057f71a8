"""Sentences that a class name is put into before it is embedded: "a photo of a {}."

A CLIP model was trained on sentences, so a bare name is not what it knows best, and the mean
over many sentences is better than any one of them (Radford et al. 2021, arXiv:2103.00020,
section 3.1.4). Whoever averages the vectors is zero_shot.py.

The sets are OpenAI's, under the MIT licence (see NOTICE): ImageNet's 80 and the 7 that a
forward selection kept of them from openai/CLIP, notebooks/Prompt_Engineering_for_ImageNet.ipynb
(commit 2b49d4e), the others from data/prompts.md (commit 04f4dc2). Their spelling is kept
("a origami {}."): the published accuracies were measured with it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from twinlens.errors import ConfigError
from twinlens.evaluate.sets import LabelledSet

DEFAULT_SET = "short"  # better than all 80 on small models, at a tenth of the text (notebook)
PLACEHOLDER = "{}"
_OTHER_PLACEHOLDER = "{c}"  # as CLIP_benchmark's files spell it

Templates = tuple[str, ...]


def find_templates(text: str) -> Templates:
    """Those of a set's name ("imagenet", "short", "food101", ...) or of a file.

    Raises ConfigError for what is neither.
    """
    known = TEMPLATE_SETS.get(_key(text))
    if known is not None:
        return known
    path = Path(text)
    if path.is_file():
        return read_templates(path)
    raise ConfigError(
        f"{text} is neither a file of templates nor one of the built-in sets: "
        f"{', '.join(TEMPLATE_SETS)}."
    )


def choose_templates(data: LabelledSet, wanted: str | None = None) -> tuple[str, Templates]:
    """What to call them and the templates: `wanted`, else the data set's own, else the default.

    `wanted` is what find_templates() takes. Raises what it raises.
    """
    if wanted is not None:
        return wanted, find_templates(wanted)
    if data.templates:
        return "the data set's own", data.templates
    key = _key(data.template_key)
    name = key if key in TEMPLATE_SETS else DEFAULT_SET
    return name, TEMPLATE_SETS[name]


def read_templates(path: Path) -> Templates:
    """One template a line, or a JSON list of them; see parse_templates().

    Raises ConfigError for a file that cannot be read or holds none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"The file of templates {path} cannot be read: {reason}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The file of templates {path} is no UTF-8 text.") from error
    if not text.lstrip().startswith("["):
        return parse_templates(text.splitlines(), source=str(path))
    try:
        lines = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"The file of templates {path} is no JSON list: {error}.") from error
    if not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"The file of templates {path} must be a JSON list of texts alone.")
    return parse_templates(lines, source=str(path))


def parse_templates(lines: Iterable[str], *, source: str) -> Templates:
    """The templates among `lines`, each once, with {} where the class name goes.

    Empty lines and those that start with # are left out; {c} counts as {}.
    Raises ConfigError, which names `source`, for a template without a place for the name
    and where there are none.
    """
    templates: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        template = line.strip().replace(_OTHER_PLACEHOLDER, PLACEHOLDER)
        if not template or template.startswith("#"):
            continue
        if PLACEHOLDER not in template:
            raise ConfigError(
                f"{source}, line {number}: the template {template!r} has no {{}} for the class "
                f"name. Write one, as in 'a photo of a {{}}.'"
            )
        templates[template] = None
    if not templates:
        raise ConfigError(f"{source} holds no templates: write one a line, 'a photo of a {{}}.'")
    return tuple(templates)


def fill(template: str, class_name: str) -> str:
    """The sentence about one class.

    Not str.format(), for which "{0.real}" in a user's file would be a command.
    """
    return template.replace(PLACEHOLDER, class_name)


def _key(name: str) -> str:
    """ "Oxford_Pets" and "oxford-pets" are one name; ImageNet's relatives share its set."""
    key = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _ALIASES.get(key, key)


def _lines(text: str) -> Templates:
    return tuple(text.strip().splitlines())


def _crossed(beginnings: str, things: str) -> Templates:
    """Each thing with each beginning, things outermost."""
    return tuple(
        f"{beginning} {thing}." for thing in _lines(things) for beginning in _lines(beginnings)
    )


_IMAGENET = _lines("""
a bad photo of a {}.
a photo of many {}.
a sculpture of a {}.
a photo of the hard to see {}.
a low resolution photo of the {}.
a rendering of a {}.
graffiti of a {}.
a bad photo of the {}.
a cropped photo of the {}.
a tattoo of a {}.
the embroidered {}.
a photo of a hard to see {}.
a bright photo of a {}.
a photo of a clean {}.
a photo of a dirty {}.
a dark photo of the {}.
a drawing of a {}.
a photo of my {}.
the plastic {}.
a photo of the cool {}.
a close-up photo of a {}.
a black and white photo of the {}.
a painting of the {}.
a painting of a {}.
a pixelated photo of the {}.
a sculpture of the {}.
a bright photo of the {}.
a cropped photo of a {}.
a plastic {}.
a photo of the dirty {}.
a jpeg corrupted photo of a {}.
a blurry photo of the {}.
a photo of the {}.
a good photo of the {}.
a rendering of the {}.
a {} in a video game.
a photo of one {}.
a doodle of a {}.
a close-up photo of the {}.
a photo of a {}.
the origami {}.
the {} in a video game.
a sketch of a {}.
a doodle of the {}.
a origami {}.
a low resolution photo of a {}.
the toy {}.
a rendition of the {}.
a photo of the clean {}.
a photo of a large {}.
a rendition of a {}.
a photo of a nice {}.
a photo of a weird {}.
a blurry photo of a {}.
a cartoon {}.
art of a {}.
a sketch of the {}.
a embroidered {}.
a pixelated photo of a {}.
itap of the {}.
a jpeg corrupted photo of the {}.
a good photo of a {}.
a plushie {}.
a photo of the nice {}.
a photo of the small {}.
a photo of the weird {}.
the cartoon {}.
art of the {}.
a drawing of the {}.
a photo of the large {}.
a black and white photo of a {}.
the plushie {}.
a dark photo of a {}.
itap of a {}.
graffiti of the {}.
a toy {}.
itap of my {}.
a photo of a cool {}.
a photo of a small {}.
a tattoo of the {}.
""")

_SHORT = _lines("""
itap of a {}.
a bad photo of the {}.
a origami {}.
a photo of the large {}.
a {} in a video game.
art of the {}.
a photo of the small {}.
""")

_CIFAR = _lines("""
a photo of a {}.
a blurry photo of a {}.
a black and white photo of a {}.
a low contrast photo of a {}.
a high contrast photo of a {}.
a bad photo of a {}.
a good photo of a {}.
a photo of a small {}.
a photo of a big {}.
a photo of the {}.
a blurry photo of the {}.
a black and white photo of the {}.
a low contrast photo of the {}.
a high contrast photo of the {}.
a bad photo of the {}.
a good photo of the {}.
a photo of the small {}.
a photo of the big {}.
""")

_CALTECH101 = _lines("""
a photo of a {}.
a painting of a {}.
a plastic {}.
a sculpture of a {}.
a sketch of a {}.
a tattoo of a {}.
a toy {}.
a rendition of a {}.
a embroidered {}.
a cartoon {}.
a {} in a video game.
a plushie {}.
a origami {}.
art of a {}.
graffiti of a {}.
a drawing of a {}.
a doodle of a {}.
a photo of the {}.
a painting of the {}.
the plastic {}.
a sculpture of the {}.
a sketch of the {}.
a tattoo of the {}.
the toy {}.
a rendition of the {}.
the embroidered {}.
the cartoon {}.
the {} in a video game.
the plushie {}.
the origami {}.
art of the {}.
graffiti of the {}.
a drawing of the {}.
a doodle of the {}.
""")

_CARS = _lines("""
a photo of a {}.
a photo of the {}.
a photo of my {}.
i love my {}!
a photo of my dirty {}.
a photo of my clean {}.
a photo of my new {}.
a photo of my old {}.
""")

_COUNTRIES = _lines("""
a photo i took in {}.
a photo i took while visiting {}.
a photo from my home country of {}.
a photo from my visit to {}.
a photo showing the country of {}.
""")

_FACES = _lines("""
a photo of a {} looking face.
a photo of a face showing the emotion: {}.
a photo of a face looking {}.
a face that looks {}.
they look {}.
look at how {} they are.
""")

_SIGNS = _lines("""
a zoomed in photo of a "{}" traffic sign.
a centered photo of a "{}" traffic sign.
a close up photo of a "{}" traffic sign.
""")

_MEDIA = ("a photo of", "a video of", "a example of", "a demonstration of")
_DEEDS = ("{}", "using {}", "doing {}", "during {}", "performing {}", "practicing {}")
# Kinetics runs through the deeds for each medium, UCF101 the other way round.
_KINETICS = tuple(
    f"{medium} {deed}."
    for medium in _MEDIA
    for deed in ("{}", *(f"a person {deed}" for deed in _DEEDS))
)
_UCF101 = tuple(
    f"{medium} {person} {deed}."
    for deed in _DEEDS
    for person in ("a person", "the person")
    for medium in _MEDIA
)
_FROM_ABOVE = _crossed(
    "satellite imagery of\naerial imagery of\nsatellite photo of\naerial photo of\n"
    "satellite view of\naerial view of",
    "{}\na {}\nthe {}",
)
_TEXTURES = tuple(
    f"a photo of {article} {{}} {thing}."
    for article in ("a", "the")
    for thing in ("texture", "pattern", "thing", "object")
)
_A_AND_THE = ("a photo of a {}.", "a photo of the {}.")

TEMPLATE_SETS: Mapping[str, Templates] = MappingProxyType(
    {
        "imagenet": _IMAGENET,
        "short": _SHORT,
        "plain": ("a photo of a {}.",),
        "name": ("{}",),
        "birdsnap": ("a photo of a {}, a type of bird.",),
        "caltech101": _CALTECH101,
        "cifar": _CIFAR,
        "clevr-counts": ("a photo of {} objects.",),
        "country211": _COUNTRIES,
        "dtd": _TEXTURES,
        "eurosat": _crossed("a centered satellite photo of", "{}\na {}\nthe {}"),
        "fer2013": _FACES,
        "fgvc-aircraft": _crossed(
            "a photo of", "a {}, a type of aircraft\nthe {}, a type of aircraft"
        ),
        "flowers102": ("a photo of a {}, a type of flower.",),
        "food101": ("a photo of {}, a type of food.",),
        "gtsrb": _SIGNS,
        "hateful-memes": ("a {}.",),
        "kinetics700": _KINETICS,
        "kitti": ("{}",),
        "mnist": ('a photo of the number: "{}".',),
        "oxford-pets": ("a photo of a {}, a type of pet.",),
        "patch-camelyon": ("this is a photo of {}",),
        "resisc45": _FROM_ABOVE,
        "sst2": ("a {} review of a movie.",),
        "stanford-cars": _CARS,
        "stl10": _A_AND_THE,
        "sun397": _A_AND_THE,
        "ucf101": _UCF101,
        "voc2007": ("a photo of a {}.",),
    }
)

_ALIASES = {
    "aircraft": "fgvc-aircraft",
    "caltech-101": "caltech101",
    "cars": "stanford-cars",
    "cifar-10": "cifar",
    "cifar-100": "cifar",
    "cifar10": "cifar",
    "cifar100": "cifar",
    "flowers": "flowers102",
    "food-101": "food101",
    "imagenet-80": "imagenet",
    "imagenet-a": "imagenet",
    "imagenet-r": "imagenet",
    "imagenet-sketch": "imagenet",
    "imagenet-v2": "imagenet",
    "imagenet1k": "imagenet",
    "imagenet80": "imagenet",
    "imagenetv2": "imagenet",
    "objectnet": "imagenet",
    "pcam": "patch-camelyon",
    "pets": "oxford-pets",
    "rendered-sst2": "sst2",
    "stl-10": "stl10",
}
