"""Commands of `twinlens evaluate` that say where a model fails."""

from typing import Annotated

import typer

from twinlens.cli.evaluate_options import Shared, task
from twinlens.cli.evaluate_run import Evaluation, Part


@task()
def robustness_command(
    shared: Shared,
    damage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only this damage; repeatable. [default: all]", show_default=False
        ),
    ] = None,
    severity: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="1 to 5; repeatable. [default: all five]", show_default=False
        ),
    ] = None,
) -> None:
    """How much is lost when pictures are blurred, compressed, noisy, cropped or grey?

    Every picture is embedded once for each damage and severity, 46 times in all; without
    --limit at most 500 pictures are taken.

    \b
      twinlens evaluate robustness pets/ --limit 100 --html curves.html
    """
    from twinlens.cli.evaluate_tasks import robustness_part
    from twinlens.evaluate.corruptions import SEVERITIES, check_kinds

    check_kinds(damage or [], severity or list(SEVERITIES))
    with Evaluation(shared) as run:
        data = run.opened(shared.kind)
        run.finish([robustness_part(run, data, kinds=damage or (), severities=severity or ())])


@task(without=["kind"])
def typographic_command(shared: Shared) -> None:
    """Does a word written on a picture outweigh what the picture shows?

    The name of another class is put on each picture, as a paper label. Without --limit at
    most 1,000 pictures are taken.

    \b
      twinlens evaluate typographic pets/ --html fooled.html
    """
    from twinlens.cli.evaluate_tasks import typographic_part

    with Evaluation(shared) as run:
        run.finish([typographic_part(run, run.labelled())])


@task(without=["templates"])
def composition_command(
    shared: Shared,
    data: Annotated[
        str,
        typer.Argument(
            metavar="[DATA]",
            help="With captions: is a caption preferred to one with words exchanged? With labels: "
            'is "no" understood? Without: drawn pictures alone.',
            show_default=False,
        ),
    ] = "",
) -> None:
    """Does the model mind who is where, what is red, how many, and the word "no"?

    Pairs such as "a red cube on a blue ball" and numbers of things are drawn for it.

    \b
      twinlens evaluate composition
      twinlens evaluate composition captions.csv
    """
    from twinlens.cli.evaluate_tasks import caption_swaps_part, drawn_parts, negation_part
    from twinlens.evaluate.sets import LabelledSet

    with Evaluation(shared) as run:
        parts: list[Part] = []
        if shared.data:
            opened = run.opened(shared.kind)
            if isinstance(opened, LabelledSet):
                parts.append(negation_part(run, opened))
            else:
                parts.append(caption_swaps_part(run, opened))
        run.finish([*parts, *drawn_parts(run)])


@task()
def geometry_command(
    shared: Shared,
    twin_cosine: Annotated[
        float,
        typer.Option(metavar="COSINE", help="From which on two pictures are near duplicates."),
    ] = 0.95,
) -> None:
    """How do the vectors lie: gap of pictures and words, hubs, near duplicates, dimensions used?

    Without --limit at most 10,000 pictures are taken.

    \b
      twinlens evaluate geometry captions.csv --html twins.html
    """
    from twinlens.cli.evaluate_tasks import geometry_part

    with Evaluation(shared) as run:
        run.finish([geometry_part(run, run.opened(shared.kind), twin_cosine=twin_cosine)])


@task()
def groups_command(
    shared: Shared,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of the table or field of the shards; class for the classes. "
            "[default: the first there is]",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A metric of zero-shot, or of retrieval where there are captions. "
            "[default: accuracy@1 or text_to_image_recall@1]",
            show_default=False,
        ),
    ] = None,
    smallest: Annotated[
        int, typer.Option(metavar="N", min=1, help="Pictures that a group must have.")
    ] = 20,
) -> None:
    """Is the score different for some groups: by country, camera, category?

    \b
      twinlens evaluate groups photos.csv --by country
    """
    from twinlens.cli.evaluate_tasks import groups_part

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.opened(shared.kind))
        part = groups_part(run, data, vectors, column=by, metric=metric, smallest=smallest)
        run.finish([part])
