"""What every evaluation hands back, as a value, as JSON and as a Markdown table.

One schema for all tasks. A file holds one result or several:

    {"schema": "twinlens.evaluation", "version": 1, "results": [...]}

JSON has no NaN and no infinity (RFC 8259, section 6): both are written as null, and a figure
or an item that is null reads as NaN again. Ids that several metrics share are written once.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, SupportsFloat

import numpy as np

from twinlens.errors import ConfigError
from twinlens.text import printable

SCHEMA = "twinlens.evaluation"
SCHEMA_VERSION = 1

NOT_A_NUMBER = "-"


@dataclass(frozen=True)
class Figure:
    """A number and its 95 % interval; `low` and `high` are None where none can be given."""

    value: float
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    unit: str = ""

    def __str__(self) -> str:
        """`0.534 [0.512, 0.556]`."""
        text = number_text(self.value, self.unit)
        if self.low is not None and self.high is not None:
            low, high = (number_text(end, self.unit) for end in (self.low, self.high))
            text += f" [{low}, {high}]"
        return f"{text} {self.unit}" if self.unit else text


@dataclass(frozen=True)
class PerItem:
    """One metric's value for each item: what `compare` pairs between two models.

    `clusters` names what each item belongs to where items are not independent: the picture
    of a caption, say; the same name means resampled together. The figure of the same name is
    the `statistic` of `values`.
    """

    ids: list[str]
    values: list[float]
    what: str = "image"  # what an item is
    clusters: list[str] | None = None
    statistic: Literal["mean", "median"] = "mean"

    @classmethod
    def of(
        cls,
        ids: Iterable[object],
        values: Iterable[SupportsFloat],
        *,
        what: str = "image",
        clusters: Iterable[object] | None = None,
        statistic: Literal["mean", "median"] = "mean",
    ) -> "PerItem":
        """From arrays of any type, booleans too."""
        return cls(
            ids=[str(name) for name in ids],
            values=[float(value) for value in values],
            what=what,
            clusters=None if clusters is None else [str(name) for name in clusters],
            statistic=statistic,
        )

    def __post_init__(self) -> None:
        lengths = {len(self.ids), len(self.values), len(self.clusters or self.ids)}
        if len(lengths) > 1:
            raise ConfigError(
                f"a metric per {self.what} has {len(self.ids):,} ids, {len(self.values):,} values"
                f" and {len(self.clusters or self.ids):,} clusters; it takes one of each an item."
            )


@dataclass
class Result:
    """One task, one model, one data set."""

    task: str  # "zero-shot", "retrieval", "probe", ...
    model: dict[str, Any]  # name, model_id, dim
    data: dict[str, Any]  # name, images, captions or classes, fingerprint, skipped
    settings: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)
    per_item: dict[str, PerItem] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)  # JSON-able, the task's own

    @property
    def title(self) -> str:
        """`zero-shot on pets with mini`."""
        return f"{self.task} on {_name(self.data)} with {_name(self.model)}"

    def to_dict(self) -> dict[str, Any]:
        """Only what JSON knows: no NaN, no numpy."""
        shared: list[list[str]] = []
        places: dict[tuple[str, ...], int] = {}

        def place(names: Sequence[str]) -> int:
            key = tuple(str(name) for name in names)
            if key not in places:
                places[key] = len(shared)
                shared.append(list(key))
            return places[key]

        per_item = {
            metric: {
                "ids": place(items.ids),
                "clusters": None if items.clusters is None else place(items.clusters),
                "what": items.what,
                "statistic": items.statistic,
                "values": [_short(value) for value in items.values],
            }
            for metric, items in self.per_item.items()
        }
        values = {
            "task": self.task,
            "model": self.model,
            "data": self.data,
            "settings": self.settings,
            "figures": {name: asdict(figure) for name, figure in self.figures.items()},
            "names": shared,
            "per_item": per_item,
            "details": self.details,
        }
        return {key: _jsonable(value) for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Result":
        """Raises KeyError, TypeError or ValueError for what to_dict() did not write."""
        shared = values["names"]
        return cls(
            task=str(values["task"]),
            model=dict(values["model"]),
            data=dict(values["data"]),
            settings=dict(values["settings"]),
            figures={name: _figure(figure) for name, figure in values["figures"].items()},
            per_item={
                metric: PerItem(
                    ids=shared[items["ids"]],
                    values=[_number(value) for value in items["values"]],
                    what=str(items["what"]),
                    clusters=None if items["clusters"] is None else shared[items["clusters"]],
                    statistic=items["statistic"],
                )
                for metric, items in values["per_item"].items()
            },
            details=dict(values["details"]),
        )

    def to_json(self) -> str:
        """A file's content, with this result alone."""
        return results_to_json([self])

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """The only result of a file's content; raises ConfigError where there are others."""
        results = results_from_json(text)
        if len(results) != 1:
            raise ConfigError(
                f"expected one result and found {len(results)}: read them with results_from_json()."
            )
        return results[0]


def results_to_json(results: Sequence[Result]) -> str:
    """A file's content."""
    # A line per field: a person finds the figures, and half a million items stay one line.
    written = [
        ",\n".join(
            f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}"
            for key, value in result.to_dict().items()
        )
        for result in results
    ]
    body = ",\n".join(f"{{\n{fields}\n}}" for fields in written)
    return f'{{"schema": "{SCHEMA}", "version": {SCHEMA_VERSION}, "results": [\n{body}\n]}}\n'


def results_from_json(text: str, *, name: str = "this JSON") -> list[Result]:
    """What results_to_json() wrote. Raises ConfigError, which calls the text `name`."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}.") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ConfigError(
            f"{name} does not hold results of `twinlens evaluate`; write some with its --json FILE."
        )
    version = values.get("version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{name} was written in version {version} of the results' format and this twinlens "
            f"knows it up to {SCHEMA_VERSION}: update twinlens, or evaluate again with this one."
        )
    try:
        if not isinstance(values["results"], list) or not all(
            isinstance(item, dict) for item in values["results"]
        ):
            raise TypeError("results are not a list of objects")
        return [Result.from_dict(item) for item in values["results"]]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ConfigError(
            f"{name} is damaged: it is not what `twinlens evaluate` writes "
            f"({type(error).__name__}: {error}). Evaluate again."
        ) from error


def write_results(path: Path, results: Sequence[Result]) -> None:
    """Raises OSError where the file cannot be written."""
    path.write_text(results_to_json(results), encoding="utf-8")


def read_results(path: Path) -> list[Result]:
    """Raises OSError, or ConfigError for a file of another kind or of a newer twinlens."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not JSON: it is no UTF-8 text.") from error
    return results_from_json(text, name=str(path))


def to_markdown(results: Sequence[Result]) -> str:
    """One table: a row per figure of a task on some data, a column per model."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for result in results:
        for name, figure in result.figures.items():
            row = rows.setdefault(_free_row(rows, result, name), {})
            row[_name(result.model)] = str(figure)
    models = list(dict.fromkeys(model for row in rows.values() for model in row))
    lines = [markdown_row(["task", "data", "figure", *models])]
    lines.append("|---|---|---|" + "---:|" * len(models))
    lines += [markdown_row([*key, *(row.get(m, "") for m in models)]) for key, row in rows.items()]
    return "\n".join(lines) + "\n"


def _free_row(
    rows: dict[tuple[str, str, str], dict[str, str]], result: Result, figure: str
) -> tuple[str, str, str]:
    """The figure's row, or a numbered one where this model has filled it with other settings."""
    model, data = _name(result.model), _name(result.data)
    task, count = result.task, 1
    while model in rows.get((task, data, figure), {}):
        count += 1
        task = f"{result.task} ({count})"
    return task, data, figure


def markdown_row(cells: Sequence[str]) -> str:
    """A table's line; what Markdown or a terminal would take for more than text is escaped."""
    escaped = (
        printable(cell).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
        for cell in cells
    )
    return f"| {' | '.join(escaped)} |"


def number_text(value: float, unit: str = "") -> str:
    """Three decimals for shares and scores, as many digits as needed for what has a unit."""
    if not math.isfinite(value):
        return NOT_A_NUMBER if math.isnan(value) else str(value)
    if unit:
        return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if abs(value) < 10:
        return f"{value:.3f}"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _name(values: dict[str, Any]) -> str:
    return str(values.get("name", "?"))


def _figure(values: dict[str, Any]) -> Figure:
    return Figure(**{**values, "value": _number(values["value"])})


def _number(value: float | int | None) -> float:
    return math.nan if value is None else float(value)


def _short(value: float) -> float | int | None:
    """1 for 1.0: most items are hits and misses, and there may be half a million."""
    value = float(value)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _jsonable(value: Any) -> Any:
    """The same in dicts, lists, text and numbers that JSON has; raises TypeError for the rest."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _jsonable(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a result cannot hold a {type(value).__name__}: JSON does not know it")
