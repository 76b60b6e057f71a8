"""`twinlens models`: which models are here, which could be, and what is known about each."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twinlens.cli.console import note
from twinlens.cli.pull_command import search_line
from twinlens.text import printable

if TYPE_CHECKING:
    from twinlens.hub.registry import PublishedModel

ROW = "{mark:1} {name:28} {parameters:>6} {dim:>4} {size:>5} {context:>4} {activation:10}"
ROW += " {imagenet:>5} {coco:>9} {flickr30k:>9} {note}"


def models_command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILTER]...",
            help="Words to look for in names and families; or one whole name, for all that is "
            "known about that model.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the models and all their facts as JSON.")
    ] = False,
) -> None:
    """List the models on this machine and those that `twinlens pull` can fetch.

    \b
      twinlens models
      twinlens models siglip
      twinlens models openai/vit-b-32
    """
    from twinlens.errors import ModelNotFound
    from twinlens.hub.registry import find_published, published_models, suggestion

    text = " ".join(words or [])
    here = [entry for entry in _on_this_machine() if _matches(text, entry["name"], "")]
    exact = find_published(text) if text else None
    if exact is not None:
        models: Sequence[PublishedModel] = [exact]
        here = [entry for entry in here if entry["name"] == exact.name]
    else:
        models = [model for model in published_models() if _matches(text, *_searched(model))]
    if not models and not here:
        raise ModelNotFound(f"no model's name or family has {text!r} in it. {suggestion(text)}")
    if as_json:
        known = {model.name for model in models}
        others = [entry for entry in here if entry["name"] not in known]
        print(json.dumps([*others, *(_facts(model) for model in models)], indent=2))
    elif exact is not None:
        print("\n".join(_card(exact)))
    else:
        print("\n".join(_table(here, models)))
        for line in _legend(models):
            note(line)


def _on_this_machine() -> list[dict[str, Any]]:
    """Built-in models, then pulled ones: name and folder, and sizes where the files say them."""
    from twinlens.hub.cache import pulled_folder, pulled_names
    from twinlens.runtime.folder import BUILT_IN, CONFIG_NAME

    found = []
    for path in sorted(BUILT_IN.glob(f"*/{CONFIG_NAME}")):
        config = json.loads(path.read_text(encoding="utf-8"))
        found.append(
            {
                "name": path.parent.name,
                "built_in": True,
                "folder": str(path.parent),
                "dim": config.get("dim"),
                "image_size": config.get("preprocess", {}).get("image_size"),
                "context": config.get("tokenizer", {}).get("context"),
            }
        )
    for name in pulled_names():
        found.append({"name": name, "built_in": False, "folder": str(pulled_folder(name))})
    return found


def _searched(model: "PublishedModel") -> tuple[str, str]:
    from twinlens.hub.registry import families

    family = families()[model.family]
    return model.name, f"{family.key} {family.title} {model.title} {' '.join(model.aliases)}"


def _matches(text: str, name: str, about: str) -> bool:
    """Whether all words of `text` occur somewhere."""
    where = f"{name} {about}".lower()
    return all(word in where for word in text.lower().split())


def _table(here: Sequence[dict[str, Any]], models: Sequence["PublishedModel"]) -> Iterator[str]:
    from twinlens.hub.registry import families

    yield ROW.format(
        **{"mark": "", "name": "NAME", "parameters": "PARAMS", "dim": "DIM", "size": "IMAGE"},
        **{"context": "TEXT", "activation": "ACTIVATION", "imagenet": "IN-1k", "coco": "COCO"},
        **{"flickr30k": "Flickr30k", "note": ""},
    ).rstrip()
    by_name = {model.name: model for model in models}
    if here:
        yield "\non this machine"
    for entry in here:
        model = by_name.get(entry["name"])
        yield _row(model, "+") if model else _plain_row(entry)
    pulled = {entry["name"] for entry in here}
    for family in families().values():
        rest = [m for m in models if m.family == family.key and m.name not in pulled]
        if rest:
            yield f"\n{family.title}; licence: {family.licence}; {family.paper}"
        for model in rest:
            yield _row(model, " " if model.supported else "-")


def _row(model: "PublishedModel", mark: str) -> str:
    return ROW.format(
        mark=mark,
        name=model.name,
        parameters=_millions(model.parameters),
        dim=_or_blank(model.dim),
        size=_or_blank(model.image_size),
        context=model.context,
        activation=model.activation,
        imagenet=_or_blank(model.imagenet),
        coco=_pair(model.coco),
        flickr30k=_pair(model.flickr30k),
        note="",
    ).rstrip()


def _plain_row(entry: dict[str, Any]) -> str:
    return ROW.format(
        **{"mark": "+", "name": printable(entry["name"]), "parameters": "", "activation": ""},
        **{"imagenet": "", "coco": "", "flickr30k": ""},
        note="built in" if entry["built_in"] else "",
        dim=_or_blank(entry.get("dim")),
        size=_or_blank(entry.get("image_size")),
        context=_or_blank(entry.get("context")),
    ).rstrip()


def _legend(models: Sequence["PublishedModel"]) -> list[str]:
    lines = [
        "",
        "+ on this machine   - known, but twinlens cannot run it yet",
        "TEXT in tokens; IN-1k: zero-shot top-1; COCO, Flickr30k: recall@1,",
        "text to image/image to text; all in percent, as published.",
        "All facts and sources of one model: twinlens models NAME",
    ]
    if not any(not model.supported for model in models):
        lines[1] = lines[1].partition("   ")[0]
    return lines


def _card(model: "PublishedModel") -> Iterator[str]:
    """Everything about one model, and what to type next."""
    from twinlens.hub.cache import pulled_folder
    from twinlens.hub.registry import families, preprocessing, sources

    family = families()[model.family]
    folder = pulled_folder(model.name)
    figures, counts = (
        sources().get(key or "", "") for key in (model.figures_source, model.parameters_source)
    )
    facts = {
        "family": f"{family.title}, {family.paper}",
        "licence": family.licence,
        "image tower": model.title,
        "parameters": f"{model.parameters} million" if model.parameters else "",
        "dim": model.dim,
        "image size": f"{model.image_size} px" if model.image_size else "",
        "context": f"{model.context} tokens",
        "activation": model.activation,
        "preprocessing": preprocessing()[model.preprocess],
        "ImageNet-1k": f"{model.imagenet} % zero-shot top-1" if model.imagenet else "",
        "COCO": _recall(model.coco),
        "Flickr30k": _recall(model.flickr30k),
        "figures from": figures,
        "parameters from": counts if counts != figures else "the same",
        "published at": model.url or f"hf:{model.repo}",
        "format": model.format,
        "also known as": ", ".join(model.aliases),
        "cannot run": model.unsupported,
        "on this machine": folder,
    }
    yield model.name
    for name, value in facts.items():
        if value:
            yield f"  {name:16} {printable(str(value))}"
    yield f"\nnext: {_next(model, folder)}"


def _next(model: "PublishedModel", folder: Path | None) -> str:
    if folder is not None:
        return search_line(model.name)
    if model.supported:
        return f"twinlens pull {model.name}"
    return f"twinlens pull hf:{model.repo} (only the files)"


def _facts(model: "PublishedModel") -> dict[str, Any]:
    from twinlens.hub.cache import pulled_folder
    from twinlens.hub.registry import families, preprocessing, sources

    folder = pulled_folder(model.name)
    return {
        **asdict(model),
        "built_in": False,
        "folder": None if folder is None else str(folder),
        "supported": model.supported,
        "licence": families()[model.family].licence,
        "paper": families()[model.family].paper,
        "preprocess": preprocessing()[model.preprocess],
        "figures_source": sources().get(model.figures_source or ""),
        "parameters_source": sources().get(model.parameters_source or ""),
    }


def _millions(parameters: float | None) -> str:
    return "" if parameters is None else f"{parameters:,.0f}M"


def _or_blank(value: int | float | None) -> str:
    return "" if value is None else str(value)


def _pair(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]}/{pair[1]}"


def _recall(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]} % text to image, {pair[1]} % image to text, recall@1"
