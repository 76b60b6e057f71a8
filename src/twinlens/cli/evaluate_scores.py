"""Commands of `twinlens evaluate` that say how good a model is, and how sure one may be of it."""

from pathlib import Path
from typing import Annotated

import typer

from twinlens.cli.console import note
from twinlens.cli.evaluate_options import Shared, task
from twinlens.cli.evaluate_run import Evaluation, check_folder

TestOption = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="Measure there; DATA is then for learning alone. [default: a fifth of DATA]",
        show_default=False,
    ),
]
TestSplitOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Measure on this part, of DATA or --test; learn on --split.",
        show_default=False,
    ),
]


@task(without=["kind"])
def zero_shot_command(shared: Shared) -> None:
    """Is each picture nearest to its own class's name?

    Classes are put into sentences ("a photo of a cat."), whose vectors are averaged.

    \b
      twinlens evaluate zero-shot pets/
      twinlens evaluate zero-shot pets/ --classes names.txt --templates imagenet
      twinlens evaluate zero-shot cifar10 --root ~/data --html cifar10.html
    """
    from twinlens.cli.evaluate_tasks import zero_shot_part

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.labelled())
        run.finish([zero_shot_part(run, data, vectors)])


@task(without=["kind", "classes", "templates"])
def retrieval_command(
    shared: Shared,
    recall_only: Annotated[
        bool,
        typer.Option("--recall-only", help="Leave out the pictures' mAP and nDCG: faster."),
    ] = False,
) -> None:
    """Do captions find their pictures, and pictures their captions?

    Recall at 1, 5 and 10, median rank, mAP and nDCG, both ways.

    \b
      twinlens evaluate retrieval captions.csv
      twinlens evaluate retrieval flickr8k --root ~/data --html worst.html
    """
    from twinlens.cli.evaluate_tasks import retrieval_part

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.captioned())
        run.finish([retrieval_part(run, data, vectors, recall_only=recall_only)])


@task(without=["kind", "templates"])
def probe_command(
    shared: Shared, test: TestOption = None, test_split: TestSplitOption = None
) -> None:
    """How well can a linear classifier on the vectors learn the classes?

    Logistic regression as in the CLIP paper; its strength is chosen on a fifth of DATA.

    \b
      twinlens evaluate probe pets/
      twinlens evaluate probe cifar10 --root ~/data --split train --test-split test
    """
    from twinlens.cli.evaluate_tasks import probe_part, test_of

    with Evaluation(shared, needs=["sklearn"]) as run:
        data, vectors = run.embedded(run.labelled())
        run.finish([probe_part(run, data, vectors, **test_of(run, test, test_split))])


@task(without=["kind", "templates"])
def knn_command(
    shared: Shared, test: TestOption = None, test_split: TestSplitOption = None
) -> None:
    """Do the nearest labelled pictures know the class? Their number is chosen on a fifth of DATA.

    \b
      twinlens evaluate knn pets/
    """
    from twinlens.cli.evaluate_tasks import knn_part, test_of

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.labelled())
        run.finish([knn_part(run, data, vectors, **test_of(run, test, test_split))])


@task(without=["kind"])
def few_shot_command(
    shared: Shared,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Labelled pictures per class; repeatable. [default: 1, 2, 4, 8 and 16]",
            show_default=False,
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(metavar="N", min=1, help="How often shots are drawn anew.")
    ] = 5,
    test: TestOption = None,
    test_split: TestSplitOption = None,
) -> None:
    """What do a few labelled pictures per class add to the class names?

    \b
      twinlens evaluate few-shot pets/
      twinlens evaluate few-shot pets/ --shots 1 --shots 5
    """
    from twinlens.cli.evaluate_tasks import few_shot_part, test_of

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.labelled())
        measured = test_of(run, test, test_split)
        run.finish([few_shot_part(run, data, vectors, shots=shots or (), draws=draws, **measured)])


@task(without=["kind"])
def calibration_command(
    shared: Shared,
    bins: Annotated[int, typer.Option(metavar="N", min=1, help="Bins of confidence.")] = 15,
) -> None:
    """Is an answer that claims 80 % right 8 times in 10, and which temperature makes it so?

    \b
      twinlens evaluate calibration pets/
    """
    from twinlens.cli.evaluate_tasks import calibration_part

    with Evaluation(shared) as run:
        data, vectors = run.embedded(run.labelled())
        run.finish([calibration_part(run, data, vectors, bins=bins)])


@task(without=["kind"])
def unknown_command(
    shared: Shared,
    rate: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Of pictures of no class, how many may be accepted."),
    ] = 0.05,
    other: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Labelled pictures of none of the classes. [default: three in ten classes]",
            show_default=False,
        ),
    ] = None,
) -> None:
    """From which score on is an answer better than "I don't know"?

    \b
      twinlens evaluate unknown pets/ --other plants/ --rate 0.01
    """
    from twinlens.cli.evaluate_tasks import unknown_part

    with Evaluation(shared, needs=["scipy"]) as run:
        data, vectors = run.embedded(run.labelled())
        strange, strange_vectors = None, None
        if other is not None:
            strange, strange_vectors = run.embedded(run.others(other))
        run.finish(
            [
                unknown_part(
                    run, data, vectors, rate=rate, other=strange, other_vectors=strange_vectors
                )
            ]
        )


@task(without=["templates"])
def cut_off_command(
    shared: Shared,
    rule: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the rule, for `twinlens search --relevance FILE`.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of what is shown, how much must be right; then as much as possible is shown. "
            "[default: the best balance]",
            show_default=False,
        ),
    ] = None,
    beta: Annotated[
        float,
        typer.Option(metavar="BETA", help="The balance: below 1 precision counts more."),
    ] = 0.5,
    others: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="More pictures to search among, which answer no query.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """From which score on is a photo an answer? Chooses a rule for `twinlens search --relevant`.

    Queries are the captions of DATA, or its class names. Precision and recall are
    cross-validated: of queries that the rule was not chosen on.

    \b
      twinlens evaluate cut-off captions.csv --rule relevance.json
      twinlens search photos/ "a fire engine" --relevance relevance.json
    """
    from twinlens.cli.evaluate_tasks import cut_off_part
    from twinlens.evaluate.cutoff import Aim

    aim = Aim(beta=beta, precision=precision)
    check_folder(rule)
    with Evaluation(shared, needs=["sklearn"]) as run:
        data, vectors = run.embedded(run.opened(shared.kind))
        more = run.embedded(run.others(others))[1] if others is not None else None
        part = cut_off_part(run, data, vectors, aim=aim, others=more, rule_file=rule)
        run.finish([part])
    if rule is not None:
        note(f"rule: {rule}")
    else:
        note("--rule FILE keeps the rule, for `twinlens search --relevance FILE`")
