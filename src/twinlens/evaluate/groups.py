"""Whether a score differs between groups: by country, camera, category, whatever columns say.

Takes a finished Result and the groups of the pictures it is about, so that any task with a
value per picture or caption can be looked at by group without embedding anything again. It
says how the scores differ, not why: groups differ in much besides their name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from twinlens.errors import ConfigError
from twinlens.evaluate.result import Figure, PerItem, Result
from twinlens.evaluate.sets import CaptionedSet, LabelledSet
from twinlens.evaluate.statistics import Values, figure_of
from twinlens.evaluate.tasks import difference_of_means

if TYPE_CHECKING:
    from twinlens.evaluate.page import Page

SMALLEST_GROUP = 20  # pictures; of fewer a score says next to nothing
CLASS_COLUMN = "class"  # what a labelled set's own classes are called


@dataclass(frozen=True)
class GroupScore:
    """One group's figure and how much it differs from that of all others."""

    group: str
    items: int
    images: int
    score: Figure
    difference: Figure | None  # None: too small, or there are no others


def scores_by_group(
    values: Values,
    groups: Sequence[str],
    *,
    clusters: Sequence[str] | None = None,
    smallest: int = SMALLEST_GROUP,
    seed: int = 0,
) -> list[GroupScore]:
    """Mean of `values` for each group, and less that of all other items, each with interval.

    `clusters` says which items belong to one picture; a group's size counts pictures. The
    groups come in the order of their names. A picture is in one group, with all its items.

    Raises ConfigError for unequal counts.
    """
    if not len(values) == len(groups) == len(clusters if clusters is not None else values):
        raise ConfigError(
            f"There are {len(values):,} values and {len(groups):,} groups: give one for each item."
        )
    numbers = np.asarray(values, dtype=np.float64)
    names = np.asarray(groups)
    owners = np.arange(len(numbers)) if clusters is None else np.asarray(clusters)
    scores = []
    for group in sorted(set(groups)):
        inside = names == group
        score = _figure(numbers[inside], owners[inside], seed)
        images = len(np.unique(owners[inside]))
        others = len(np.unique(owners[~inside]))
        difference = None
        if min(images, others) >= smallest:
            difference = difference_of_means(
                score, _figure(numbers[~inside], owners[~inside], seed)
            )
        scores.append(GroupScore(group, int(inside.sum()), images, score, difference))
    return scores


def _figure(values: np.ndarray, owners: np.ndarray, seed: int) -> Figure:
    return figure_of(values, clusters=owners, seed=seed)


def group_differences(
    result: Result,
    data: LabelledSet | CaptionedSet,
    *,
    column: str | None = None,
    metric: str | None = None,
    smallest: int = SMALLEST_GROUP,
    seed: int = 0,
) -> Result:
    """`result`'s `metric` for each group of `column`; by default the first of each.

    The column "class" stands for a labelled set's classes. `details["groups"]` has every
    group, `details["too small"]` those below `smallest` pictures, which are not compared. The
    figure "largest difference" is between the best and the worst group that are large enough;
    it has no interval, for the pair was picked by what was measured.

    Raises ConfigError for a column or metric that is not there, and where ids do not match.
    """
    column, values = _column(data, column)
    metric, items = _metric(result, metric)
    group_of = dict(zip(data.ids, values, strict=True))
    owners = items.clusters if items.clusters is not None else items.ids
    missing = next((owner for owner in owners if owner not in group_of), None)
    if missing is not None:
        raise ConfigError(
            f"{missing!r} is in the result but not in {data.name}: take the groups from the set "
            f"that was evaluated."
        )
    scores = scores_by_group(
        items.values,
        [group_of[owner] for owner in owners],
        clusters=owners,
        smallest=smallest,
        seed=seed,
    )
    found = Result(task="groups", model=dict(result.model), data=dict(result.data))
    found.settings = {
        "task": result.task,
        "metric": metric,
        "column": column,
        "smallest group": smallest,
        "seed": seed,
    }
    _fill(found, scores, metric, smallest)
    return found


def _fill(result: Result, scores: list[GroupScore], metric: str, smallest: int) -> None:
    large = [score for score in scores if score.images >= smallest]
    for score in large:
        result.figures[f"{metric}, {score.group}"] = score.score
        if score.difference is not None:
            result.figures[f"{score.group} less others"] = score.difference
    if len(large) > 1:
        ordered = [score.score.value for score in large]
        result.figures["largest difference"] = Figure(
            max(ordered) - min(ordered), None, None, higher_is_better=False
        )
    result.details["groups"] = [
        {
            "group": score.group,
            "items": score.items,
            "images": score.images,
            "score": _as_list(score.score),
            "less others": None if score.difference is None else _as_list(score.difference),
        }
        for score in scores
    ]
    result.details["too small"] = [s.group for s in scores if s.images < smallest]
    result.details["sentences"] = sentences(scores, metric, smallest)


def sentences(scores: Sequence[GroupScore], metric: str, smallest: int) -> list[str]:
    """What was found, in words that name no cause.

    With many groups some intervals leave out 0 by chance: about one in twenty.
    """
    said = []
    for score in scores:
        if score.images < smallest:
            said.append(
                f"{score.group}: {score.images:,} pictures are too few to compare (fewer than "
                f"{smallest})."
            )
            continue
        difference = score.difference
        if difference is None or difference.low is None or difference.high is None:
            said.append(f"{score.group}: there are too few other pictures to compare with.")
        elif difference.low > 0 or difference.high < 0:
            side = "higher" if difference.value > 0 else "lower"
            said.append(f"{score.group}: {metric} is {side} than elsewhere, by {difference}.")
        else:
            said.append(f"{score.group}: no difference shown ({difference}).")
    return said


def _column(data: LabelledSet | CaptionedSet, column: str | None) -> tuple[str, tuple[str, ...]]:
    columns: Mapping[str, Sequence[str]] = data.groups
    if isinstance(data, LabelledSet) and CLASS_COLUMN not in columns:
        classes = tuple(data.main_names[label] for label in data.labels)
        columns = {**columns, CLASS_COLUMN: classes}
    if column is None and columns:
        column = next(iter(columns))
    if column is None:
        raise ConfigError(
            f"{data.name} has no groups: give it a column besides picture and caption, such as "
            f"`country`."
        )
    if column not in columns:
        known = ", ".join(columns) or "none"
        raise ConfigError(f"{data.name} has no column {column!r}; there are: {known}.")
    return column, tuple(str(value) for value in columns[column])


def _metric(result: Result, metric: str | None) -> tuple[str, PerItem]:
    if metric is None and result.per_item:
        metric = next(iter(result.per_item))
    if metric is None or metric not in result.per_item:
        known = ", ".join(result.per_item) or "none"
        raise ConfigError(
            f"The {result.task} result has no values per item of {metric!r}; there are: {known}."
        )
    return metric, result.per_item[metric]


def _as_list(figure: Figure) -> list[Any]:
    """Value, low, high."""
    return [figure.value, figure.low, figure.high]


def groups_page(page: "Page", result: Result) -> None:
    """The groups as a table, and what they say."""
    rows = [
        [
            item["group"],
            item["images"],
            Figure(*item["score"]),
            "too small" if item["less others"] is None else Figure(*item["less others"]),
        ]
        for item in result.details["groups"]
    ]
    page.table(
        [result.settings["column"], "pictures", result.settings["metric"], "less others"], rows
    )
