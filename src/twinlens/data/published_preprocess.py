"""What a published checkpoint says about its pictures, as a Preprocess.

Reads transformers' preprocessor_config.json in all its historical spellings, the nested form in
processor_config.json, and open_clip's preprocess_cfg. Every answer comes with notes: one sentence
for each thing that the files leave open and that was therefore taken from the family. What cannot
be reproduced is a ConfigError. How pictures are then prepared is preprocess.py's.

Facts from transformers 5.23 (image_processing_backends.py, models/clip, models/siglip) and
open_clip 3.3 (transform.py, factory.py).
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from twinlens.data.preprocess import Preprocess, Reference
from twinlens.errors import ConfigError

PREPROCESSOR_FILE = "preprocessor_config.json"

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

_CLIP = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": OPENAI_MEAN,
    "image_std": OPENAI_STD,
}
_SIGLIP = {
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": _SIGLIP,
}
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# What a transformers processor may hold beside the above without changing a picture.
_HARMLESS = {
    "auto_map",
    "crop_size",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_center_crop",
    "do_convert_rgb",
    "do_pad",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "model_input_names",
    "pad_size",
    "processor_class",
    "return_tensors",
    "use_square_size",
}

_OPEN_CLIP = {
    "mean": OPENAI_MEAN,
    "std": OPENAI_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}

# Whose way of preparing pictures a family follows.
_CLIP_FAMILIES: dict[str, Reference] = {
    "openai": "open_clip",
    "open_clip": "open_clip",
    "clip": "transformers",
    "metaclip_2": "transformers",
    "chinese_clip": "transformers",
}
_SIGLIP_FAMILIES: dict[str, Reference] = {"siglip": "transformers", "big_vision": "open_clip"}

Answer = tuple[Preprocess, list[str]]


def preprocess_of_folder(folder: Path, *, family: str, image_size: int) -> Answer:
    """What the files beside a checkpoint of this family say, fitted to its image tower.

    `family` is one of openai, open_clip, clip, siglip, metaclip_2, chinese_clip, big_vision;
    `image_size` (pixels) is what the image tower takes, and wins over what a file says.
    OpenAI's archives and big_vision's .npz come alone: whatever else lies in their folder
    belongs to something else.

    Raises ConfigError for a file that cannot be read or asks for what cannot be done.
    """
    if family == "open_clip":
        path = folder / "open_clip_config.json"
        values = _read(path, "preprocess_cfg")
        if values is not None:
            return from_open_clip(values, image_size=image_size, source=str(path))
    elif family not in ("openai", "big_vision"):
        assumed = "SiglipImageProcessor" if family == "siglip" else "CLIPImageProcessor"
        # In transformers' order: the nested form is the newer one.
        for name, key in (("processor_config.json", "image_processor"), (PREPROCESSOR_FILE, None)):
            path = folder / name
            values = _read(path, key)
            if values is not None:
                preprocess, notes = from_transformers(values, source=str(path), assumed=assumed)
                return _fitted(preprocess, image_size, str(path), notes)
    return default_preprocess(family, image_size)


def default_preprocess(family: str, image_size: int) -> Answer:
    """The family's own preparation, for a checkpoint that says nothing about it."""
    if family in _CLIP_FAMILIES:
        preprocess = Preprocess(
            image_size=image_size,
            resize="shortest",
            mean=OPENAI_MEAN,
            std=OPENAI_STD,
            reference=_CLIP_FAMILIES[family],
        )
        taken = "OpenAI's CLIP (shortest side, centre crop, bicubic, its mean and std)"
    elif family in _SIGLIP_FAMILIES:
        preprocess = Preprocess(
            image_size=image_size,
            resize="squash",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            reference=_SIGLIP_FAMILIES[family],
        )
        taken = "SigLIP (the whole picture squashed, bicubic, mean and std 0.5)"
    else:
        known = ", ".join([*_CLIP_FAMILIES, *_SIGLIP_FAMILIES])
        raise ConfigError(f"No preprocessing is known for family {family!r}; known: {known}.")
    return preprocess, [
        f"No file beside the {family} checkpoint says how its pictures are prepared: "
        f"as for {taken}, at {image_size} pixels."
    ]


def from_transformers(
    values: dict[str, Any], *, source: str, assumed: str = "CLIPImageProcessor"
) -> Answer:
    """A preprocessor_config.json of transformers. `source` names it in notes and errors.

    `assumed` is the processor class for a file that names none.
    """
    notes: list[str] = []
    # A null counts as absent, as transformers reads it.
    values = {key: value for key, value in values.items() if value is not None}
    name = values.get("image_processor_type", values.get("feature_extractor_type"))
    if name is None:
        name = assumed
        notes.append(f"{source} names no image processor: taken for a {assumed}.")
    plain = str(name).replace("FeatureExtractor", "ImageProcessor")
    plain = plain.removesuffix("Fast").removesuffix("Pil")
    if plain not in _PROCESSORS:
        raise ConfigError(
            f"{source} asks for {name}, which is not supported; known are {', '.join(_PROCESSORS)}."
        )
    defaults = _PROCESSORS[plain]
    for key in ("do_pad", "use_square_size"):
        if values.get(key):
            raise ConfigError(f"{source} asks for {key}, which is not supported.")
    if values.get("do_convert_rgb") is False:
        notes.append(f"{source} does not ask for RGB, but every picture is made RGB.")
    if unknown := sorted(values.keys() - defaults.keys() - _HARMLESS):
        notes.append(f"{source} holds {', '.join(unknown)}, which nothing looks at.")
    given = {**defaults, **values}
    crops = bool(given.get("do_center_crop"))
    unsaid = [key for key in defaults if key not in values and (crops or key != "crop_size")]
    if unsaid:
        notes.append(
            f"{source} does not say {', '.join(unsaid)}: as {plain} has it by default "
            f"({', '.join(_shown(defaults[key]) for key in unsaid)})."
        )
    if not given["do_resize"]:
        raise ConfigError(
            f"{source} says do_resize false, but an image tower takes pictures of one size only."
        )

    resize, side = _transformers_size(given["size"], source)
    if resize == "shortest" and not crops:
        raise ConfigError(
            f"{source} keeps the shape of a picture and crops nothing, but an image tower takes "
            f"squares only."
        )
    image_size = _square(given["crop_size"], "crop_size", source) if crops else side
    if type(given["resample"]) is not int or given["resample"] not in _RESAMPLE:
        raise ConfigError(
            f"{source} says resample {given['resample']!r}; known are "
            f"{', '.join(f'{number} ({name})' for number, name in _RESAMPLE.items())}."
        )
    mean, std = _normalisation(given, source)
    fields = {
        "image_size": image_size,
        "resize": resize,
        "interpolation": _RESAMPLE[given["resample"]],
        "mean": mean,
        "std": std,
        "reference": "transformers_pillow" if str(name).endswith("Pil") else "transformers",
        "resize_size": None if side == image_size else side,
    }
    return _built(fields, source), notes


def from_open_clip(values: dict[str, Any], *, image_size: int, source: str) -> Answer:
    """The preprocess_cfg of an open_clip_config.json; the tower's `image_size` wins, as there."""
    notes: list[str] = []
    values = {key: value for key, value in values.items() if value is not None}
    if unsaid := [key for key in _OPEN_CLIP if key not in values]:
        notes.append(
            f"{source} does not say {', '.join(unsaid)}: as open_clip has it by default "
            f"({', '.join(_shown(_OPEN_CLIP[key]) for key in unsaid)})."
        )
    if unknown := sorted(values.keys() - _OPEN_CLIP.keys() - {"size", "mode", "fill_color"}):
        notes.append(f"{source} holds {', '.join(unknown)}, which nothing looks at.")
    given = {**_OPEN_CLIP, **values}
    if given.get("mode", "RGB") != "RGB":
        raise ConfigError(f"{source} asks for pictures in mode {given['mode']!r}, not RGB.")
    size = given.get("size", image_size)
    if size not in (image_size, [image_size, image_size], (image_size, image_size)):
        notes.append(
            f"{source} says size {size}, but the image tower takes {image_size} pixels: "
            f"pictures are made {image_size} pixels, as open_clip does."
        )
    if given["interpolation"] == "random":
        given["interpolation"] = "bicubic"
        notes.append(f"{source} says interpolation 'random', which is bicubic outside training.")
    if given["interpolation"] not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"{source} says interpolation {given['interpolation']!r}; open_clip knows bicubic, "
            f"bilinear and random."
        )
    fields = {
        "image_size": image_size,
        "resize": given["resize_mode"],
        "interpolation": given["interpolation"],
        "mean": _per_channel(given["mean"]),
        "std": _per_channel(given["std"]),
        "reference": "open_clip",
        "fill": given.get("fill_color", 0) if given["resize_mode"] == "longest" else 0,
    }
    return _built(fields, source), notes


def _transformers_size(size: Any, source: str) -> tuple[str, int]:
    """How `size` resizes, and to how many pixels."""
    if isinstance(size, int) and not isinstance(size, bool):
        return "shortest", size  # CLIP's and SigLIP's processors alike: default_to_square False
    if isinstance(size, dict):
        size = {key: value for key, value in size.items() if value is not None}
        if size.keys() == {"shortest_edge"}:
            return "shortest", _square(size["shortest_edge"], "size", source)
    return "squash", _square(size, "size", source)


def _square(size: Any, key: str, source: str) -> int:
    """A number of pixels, or a height and a width that are the same."""
    if isinstance(size, dict) and {name for name in size if size[name]} == {"height", "width"}:
        size = [size["height"], size["width"]]
    if isinstance(size, list | tuple) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    raise ConfigError(
        f"{source} says {key} {size!r}; supported are one number of pixels, an equal height and "
        f"width, and (as size only) a shortest_edge."
    )


def _normalisation(given: dict[str, Any], source: str) -> tuple[Any, Any]:
    """Mean and std on a scale of 0 to 1, whatever scale the file has them on."""
    if given["do_normalize"]:
        mean, std = _per_channel(given["image_mean"]), _per_channel(given["image_std"])
    else:
        mean, std = [0.0] * 3, [1.0] * 3
    factor = given["rescale_factor"] if given["do_rescale"] else 1.0
    if not isinstance(factor, int | float) or not factor > 0:
        raise ConfigError(f"{source} says rescale_factor {factor!r}; it must be above zero.")
    if abs(factor * 255 - 1) < 1e-9:
        return mean, std
    try:
        return [value / (255 * factor) for value in mean], [value / (255 * factor) for value in std]
    except TypeError as error:
        raise ConfigError(f"{source} says image_mean {mean!r}, image_std {std!r}.") from error


def _per_channel(value: Any) -> Any:
    return [value] * 3 if isinstance(value, int | float) else value


def _fitted(preprocess: Preprocess, image_size: int, source: str, notes: list[str]) -> Answer:
    """The same for a tower that takes another size than the file says."""
    if preprocess.image_size == image_size:
        return preprocess, notes
    if preprocess.resized_side != preprocess.image_size:
        raise ConfigError(
            f"{source} cuts {preprocess.image_size} pixels out of {preprocess.resized_side}, but "
            f"the image tower takes {image_size}: change the file to say what that is cut out of."
        )
    notes = [
        *notes,
        f"{source} says {preprocess.image_size} pixels, but the image tower takes {image_size}: "
        f"pictures are made {image_size} pixels.",
    ]
    return dataclasses.replace(preprocess, image_size=image_size, resize_size=None), notes


def _built(fields: dict[str, Any], source: str) -> Preprocess:
    try:
        return Preprocess.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def _shown(value: Any) -> str:
    return "1/255" if value == 1 / 255 else json.dumps(value)


def _read(path: Path, key: str | None) -> dict[str, Any] | None:
    """The object in a JSON file, or what it holds under `key`; None where there is none."""
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not a readable JSON file: {error}") from error
    if key is not None and isinstance(values, dict):
        values = values.get(key)
        if values is None:
            return None
    if not isinstance(values, dict):
        where = path if key is None else f"{path}: {key}"
        raise ConfigError(f"{where} must be a JSON object, not {type(values).__name__}.")
    return values
