"""`twinlens evaluate TASK DATA`: how good a model is on some data, how sure, and where it fails.

The tasks' commands are in evaluate_scores.py and evaluate_failures.py, the options that they
share in evaluate_options.py, what they do with opened data in evaluate_tasks.py.
"""

from typing import Annotated

import typer

from twinlens.cli.console import note
from twinlens.cli.evaluate_failures import (
    composition_command,
    geometry_command,
    groups_command,
    robustness_command,
    typographic_command,
)
from twinlens.cli.evaluate_options import Shared, task
from twinlens.cli.evaluate_run import Evaluation, Part
from twinlens.cli.evaluate_scores import (
    calibration_command,
    cut_off_command,
    few_shot_command,
    knn_command,
    probe_command,
    retrieval_command,
    unknown_command,
    zero_shot_command,
)
from twinlens.errors import ConfigError


@task(without=["kind"])
def all_command(
    shared: Shared,
    skip: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Leave this out; repeatable. robustness takes longest."),
    ] = None,
) -> None:
    """Everything that fits the data, in one report.

    With labels all but retrieval, with captions retrieval, cut-off, robustness, composition
    and geometry; groups where a column gives some. What the data is too small for is left
    out and named.

    \b
      twinlens evaluate all photos/ --html report.html --json report.json
    """
    from twinlens.cli.evaluate_tasks import CAPTIONED_TASKS, LABELLED_TASKS, drawn_parts
    from twinlens.evaluate.sets import LabelledSet

    skipped = set(skip or [])
    known = {**LABELLED_TASKS, **CAPTIONED_TASKS}
    if unknown := skipped - set(known):
        raise ConfigError(
            f"--skip {min(unknown)}: there is no such task; they are {', '.join(known)}."
        )
    needs = {"probe": "sklearn", "cut-off": "sklearn", "unknown": "scipy"}
    wanted = {module for name, module in needs.items() if name not in skipped}
    with Evaluation(shared, needs=sorted(wanted)) as run:
        parts: list[Part] = []
        for opened in run.both_kinds():
            is_labelled = isinstance(opened, LabelledSet)
            opened, vectors = run.embedded(opened)
            for name, runner in (LABELLED_TASKS if is_labelled else CAPTIONED_TASKS).items():
                if name in skipped or (name == "groups" and not opened.groups):
                    continue
                note(f"{name}: {opened.name}")
                try:
                    parts += runner(run, opened, vectors)
                except ConfigError as error:
                    run.leave_out(name, error)
        if "composition" not in skipped:
            note("composition: drawn scenes")
            parts += drawn_parts(run)
        run.finish(parts)


evaluate_app = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure a model on your data or a benchmark: how good, how sure, where it fails.\n\n"
    "Every figure has its 95 % interval. Vectors are kept in the user's cache: a second "
    "evaluation of the same pictures costs seconds.",
)
evaluate_app.command("zero-shot", short_help="Classes by their names.")(zero_shot_command)
evaluate_app.command("retrieval", short_help="Captions and pictures that find each other.")(
    retrieval_command
)
evaluate_app.command("probe", short_help="A linear classifier on the vectors.")(probe_command)
evaluate_app.command("knn", short_help="The nearest labelled pictures.")(knn_command)
evaluate_app.command("few-shot", short_help="A few labelled pictures per class.")(few_shot_command)
evaluate_app.command(
    "calibration", short_help="Is an answer that is 80 % sure right 8 times in 10?"
)(calibration_command)
evaluate_app.command("unknown", short_help='When to answer "I don\'t know".')(unknown_command)
evaluate_app.command("cut-off", short_help="From which score on a photo answers a query.")(
    cut_off_command
)
evaluate_app.command("robustness", short_help="Blur, JPEG, noise, crops, grey.")(robustness_command)
evaluate_app.command("typographic", short_help="Words written on pictures.")(typographic_command)
evaluate_app.command("composition", short_help='Who is where, how many, and "no".')(
    composition_command
)
evaluate_app.command("geometry", short_help="Gap, hubs, near duplicates.")(geometry_command)
evaluate_app.command("groups", short_help="Differences between groups.")(groups_command)
evaluate_app.command("all", short_help="Everything that fits the data, in one report.")(all_command)
