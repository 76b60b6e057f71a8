"""Runs each task of `twinlens evaluate` on opened data and says how the report shows it.

What a task measures is in evaluate/; here is how its parts meet: the model, the vectors that
tasks share, progress, plots and pictures.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinlens.cli.console import ProgressBar
from twinlens.cli.evaluate_run import Evaluation, Part

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32

    from twinlens.evaluate.cutoff import Aim
    from twinlens.evaluate.page import Page
    from twinlens.evaluate.result import Result
    from twinlens.evaluate.sets import CaptionedSet, LabelledSet

    AnySet = LabelledSet | CaptionedSet
    Vectors = Float32[np.ndarray, "image dim"]

PAIRS_PRINTED = 3  # of classes taken for each other
SUREST_KEPT = 12  # pictures that were wrong with the highest confidence


def zero_shot_part(run: Evaluation, data: "LabelledSet", vectors: "Vectors") -> Part:
    from twinlens.evaluate.calibration import logit_scale_of
    from twinlens.evaluate.tasks import templates_for
    from twinlens.evaluate.worst import as_details, worst_labels, worst_page
    from twinlens.evaluate.zero_shot import class_vectors, zero_shot, zero_shot_page

    wanted = run.options.templates
    result = zero_shot(run.embedder, data, wanted, vectors=vectors, cache=run.cache)
    templates = templates_for(data, run.templates)
    classes = class_vectors(run.embedder, data.class_names, templates, cache=run.cache)
    scale = logit_scale_of(run.embedder)
    worst = worst_labels(vectors, classes, data.labels, SUREST_KEPT, scale=scale)
    result.details["surest errors"] = as_details(data, worst)

    def show(page: "Page") -> None:
        zero_shot_page(page, result, data)
        if worst:
            worst_page(page, data, worst)

    pairs = [
        f"{pair['class']} for {pair['given']} ({pair['images']:,})"
        for pair in result.details["confused_pairs"][:PAIRS_PRINTED]
    ]
    said = [f"most often taken for another class: {', '.join(pairs)}"] if pairs else []
    return Part(result, show, said, on_page=False)


def retrieval_part(
    run: Evaluation, data: "CaptionedSet", vectors: "Vectors", *, recall_only: bool = False
) -> Part:
    from twinlens.evaluate.retrieval import retrieval, retrieval_page

    with ProgressBar("comparing") as bar:
        result = retrieval(
            run.embedder,
            data,
            recall_only=recall_only,
            vectors=vectors,
            threads=run.options.threads,
            cache=run.cache,
            counting=bar.update,
        )
    return Part(result, lambda page: retrieval_page(page, result, data))


def probe_part(run: Evaluation, data: "LabelledSet", vectors: "Vectors", **test: Any) -> Part:
    """`test` is what test_of() gives."""
    from twinlens.evaluate.probe import linear_probe

    result = linear_probe(run.embedder, data, vectors=vectors, cache=run.cache, **test)
    return Part(result, lambda page: _tried(page, result, "val accuracy by C", "C"))


def knn_part(run: Evaluation, data: "LabelledSet", vectors: "Vectors", **test: Any) -> Part:
    from twinlens.evaluate.probe import nearest_neighbours

    result = nearest_neighbours(run.embedder, data, vectors=vectors, cache=run.cache, **test)
    return Part(result, lambda page: _tried(page, result, "val accuracy by k", "k"))


def few_shot_part(
    run: Evaluation,
    data: "LabelledSet",
    vectors: "Vectors",
    *,
    shots: Sequence[int] = (),
    draws: int | None = None,
    **test: Any,
) -> Part:
    from twinlens.evaluate.few_shot import DRAWS, SHOTS, few_shot, few_shot_page

    result = few_shot(
        run.embedder,
        data,
        shots=tuple(shots) or SHOTS,
        draws=draws or DRAWS,
        templates=run.templates,
        vectors=vectors,
        cache=run.cache,
        **test,
    )
    missing = result.settings["shots left out"]
    said = [f"too few pictures for {', '.join(map(str, missing))} shots a class"] if missing else []
    return Part(result, lambda page: few_shot_page(page, result), said)


def test_of(run: Evaluation, place: str | None, split: str | None) -> dict[str, Any]:
    """The set to measure on, and its vectors, as keywords; none where nothing was asked for."""
    if place is None and split is None:
        return {}
    test, vectors = run.embedded(run.labelled(place, split))
    return {"test": test, "test_vectors": vectors}


def calibration_part(
    run: Evaluation, data: "LabelledSet", vectors: "Vectors", *, bins: int | None = None
) -> Part:
    from twinlens.evaluate.calibration import BINS, calibration, calibration_page

    result = calibration(
        run.embedder, data, run.templates, bins=bins or BINS, vectors=vectors, cache=run.cache
    )
    scale = result.details["fitted logit scale"]
    said = [
        f"for honest probabilities multiply cosines by {scale:.4g} instead of "
        f"{result.settings['logit_scale']:.4g}"
    ]
    return Part(result, lambda page: calibration_page(page, result), said)


def unknown_part(
    run: Evaluation,
    data: "LabelledSet",
    vectors: "Vectors",
    *,
    rate: float = 0.05,
    other: "LabelledSet | None" = None,
    other_vectors: "Vectors | None" = None,
) -> Part:
    from twinlens.evaluate.unknown import SCORES, unknown, unknown_page

    result = unknown(
        run.embedder,
        data,
        other,
        rate=rate,
        templates=run.templates,
        vectors=vectors,
        other_vectors=other_vectors,
        cache=run.cache,
    )
    said = [
        f"answer where the {name} is above {result.details[name]['threshold']:.4g}"
        for name in SCORES
    ]
    return Part(
        result,
        lambda page: unknown_page(page, result),
        [*said, result.details[SCORES[0]]["promise"]],
    )


def cut_off_part(
    run: Evaluation,
    data: "AnySet",
    vectors: "Vectors",
    *,
    aim: "Aim | None" = None,
    others: "Vectors | None" = None,
    rule_file: Path | None = None,
) -> Part:
    from twinlens.evaluate.cutoff import cut_off
    from twinlens.evaluate.cutoff_report import cut_off_page

    chosen = cut_off(run.embedder, data, vectors, aim=aim, others=others)
    if rule_file is not None:
        chosen.rule.write(rule_file)
    result = chosen.result
    said = [f"rule: {chosen.rule.kind} of at least {chosen.rule.threshold:.4g}"]
    return Part(result, lambda page: cut_off_page(page, result), said)


def robustness_part(
    run: Evaluation,
    data: "AnySet",
    *,
    kinds: Sequence[str] = (),
    severities: Sequence[int] = (),
) -> Part:
    from twinlens.evaluate.corruptions import KINDS, SEVERITIES
    from twinlens.evaluate.robustness import DEFAULT_LIMIT, robustness, robustness_page

    data = run.some(data, DEFAULT_LIMIT, "robustness")
    with ProgressBar("damaging") as bar:
        result = robustness(
            run.embedder,
            data,
            kinds=tuple(kinds) or tuple(KINDS),
            severities=tuple(severities) or SEVERITIES,
            templates=run.templates,
            limit=None,
            cache=run.cache,
            progress=bar.update,
        )
    return Part(result, lambda page: robustness_page(page, result, data))


def typographic_part(run: Evaluation, data: "LabelledSet") -> Part:
    from twinlens.evaluate.typographic import (
        DEFAULT_LIMIT,
        VERSIONS,
        typographic_attack,
        typographic_page,
    )

    data = run.some(data, DEFAULT_LIMIT, "typographic")
    with ExitStack() as stack:
        watched = run.watched("labelling", len(VERSIONS) * len(data), stack)
        result = typographic_attack(
            watched, data, templates=run.templates, limit=None, cache=run.cache
        )
    return Part(result, lambda page: typographic_page(page, result, data))


def drawn_parts(run: Evaluation) -> list[Part]:
    """Composition and counting, on pictures that are drawn for it."""
    from twinlens.evaluate.composition import (
        PAIRS_PER_KIND,
        PICTURES_PER_COUNT,
        composition,
        composition_page,
        counting,
        counting_page,
    )
    from twinlens.evaluate.scenes import NUMBER_WORDS, PAIR_KINDS

    pairs = 2 * PAIRS_PER_KIND * len(PAIR_KINDS)
    with ExitStack() as stack:
        total = pairs + PICTURES_PER_COUNT * len(NUMBER_WORDS)
        watched = run.watched("drawing", total, stack)
        swapped = composition(watched, pairs_per_kind=PAIRS_PER_KIND, cache=run.cache)
        counted = counting(watched, per_count=PICTURES_PER_COUNT, cache=run.cache)
    return [
        Part(swapped, lambda page: composition_page(page, swapped)),
        Part(counted, lambda page: counting_page(page, counted)),
    ]


def negation_part(run: Evaluation, data: "LabelledSet") -> Part:
    from twinlens.evaluate.composition import DEFAULT_LIMIT, negation

    data, _ = run.embedded(run.some(data, DEFAULT_LIMIT, "negation"))
    return Part(negation(run.embedder, data, limit=None, cache=run.cache))


def caption_swaps_part(run: Evaluation, data: "CaptionedSet") -> Part:
    from twinlens.evaluate.composition import DEFAULT_LIMIT, caption_swaps, caption_swaps_page

    data, _ = run.embedded(run.some(data, DEFAULT_LIMIT, "caption swaps"))
    result = caption_swaps(run.embedder, data, limit=None, cache=run.cache)
    return Part(result, lambda page: caption_swaps_page(page, result, data))


def geometry_part(run: Evaluation, data: "AnySet", *, twin_cosine: float | None = None) -> Part:
    from twinlens.evaluate.geometry import DEFAULT_LIMIT, TWIN_COSINE, geometry, geometry_page

    data, _ = run.embedded(run.some(data, DEFAULT_LIMIT, "geometry"))
    result = geometry(
        run.embedder,
        data,
        templates=run.templates,
        limit=None,
        twin_cosine=TWIN_COSINE if twin_cosine is None else twin_cosine,
        cache=run.cache,
    )
    said = [f"left out: {sentence}" for sentence in result.details["left out"]]
    return Part(result, lambda page: geometry_page(page, result, data), said)


def groups_part(
    run: Evaluation,
    data: "AnySet",
    vectors: "Vectors",
    *,
    column: str | None = None,
    metric: str | None = None,
    smallest: int | None = None,
) -> Part:
    """By zero-shot's metrics, or retrieval's for a set with captions."""
    from twinlens.evaluate.groups import SMALLEST_GROUP, group_differences, groups_page
    from twinlens.evaluate.sets import LabelledSet

    if isinstance(data, LabelledSet):
        measured = zero_shot_part(run, data, vectors).result
    else:
        measured = retrieval_part(run, data, vectors).result
    result = group_differences(
        measured,
        data,
        column=column,
        metric=metric,
        smallest=SMALLEST_GROUP if smallest is None else smallest,
    )
    said = result.details["sentences"]
    return Part(result, lambda page: groups_page(page, result), said)


def _by_column(run: Evaluation, data: "AnySet", vectors: "Vectors") -> list[Part]:
    """The groups of every column; none where the data has no groups."""
    return [groups_part(run, data, vectors, column=column) for column in data.groups]


def _tried(page: "Page", result: "Result", what: str, label: str) -> None:
    """What was tried on val, as a curve."""
    from twinlens.evaluate import plots

    places, values = zip(*result.details[what], strict=True)
    drawing = plots.curves(places, {"val": values}, x_label=label, y_label="accuracy", log_x=True)
    page.plot(f"{label}, chosen on val", drawing, f"{label} = {result.settings[label]:.4g}.")


Runner = Callable[[Evaluation, Any, Any], list[Part]]  # with a set and its vectors

# In the order of a report: how good, how sure, where it fails.
LABELLED_TASKS: dict[str, Runner] = {
    "zero-shot": lambda run, data, vectors: [zero_shot_part(run, data, vectors)],
    "probe": lambda run, data, vectors: [probe_part(run, data, vectors)],
    "knn": lambda run, data, vectors: [knn_part(run, data, vectors)],
    "few-shot": lambda run, data, vectors: [few_shot_part(run, data, vectors)],
    "calibration": lambda run, data, vectors: [calibration_part(run, data, vectors)],
    "unknown": lambda run, data, vectors: [unknown_part(run, data, vectors)],
    "cut-off": lambda run, data, vectors: [cut_off_part(run, data, vectors)],
    "robustness": lambda run, data, _: [robustness_part(run, data)],
    "typographic": lambda run, data, _: [typographic_part(run, data)],
    "composition": lambda run, data, _: [negation_part(run, data)],
    "geometry": lambda run, data, _: [geometry_part(run, data)],
    "groups": _by_column,
}
CAPTIONED_TASKS: dict[str, Runner] = {
    "retrieval": lambda run, data, vectors: [retrieval_part(run, data, vectors)],
    "cut-off": LABELLED_TASKS["cut-off"],
    "robustness": LABELLED_TASKS["robustness"],
    "composition": lambda run, data, _: [caption_swaps_part(run, data)],
    "geometry": LABELLED_TASKS["geometry"],
    "groups": _by_column,
}
