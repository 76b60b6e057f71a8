"""Fine-tunes a checkpoint on a small set, and measures what it learned and what it forgot.

    pip install -e '.[train]'
    python recipes/lora.py --model CHECKPOINT --shared ../shared --work /var/tmp/lora

Four models side by side: before; low-rank adapters (Hu et al. 2022, arXiv:2106.09685); all
weights, for equally many steps; and halfway between before and all weights (Wortsman et al.
2022, arXiv:2109.01903, figure 1). The small set is every other picture of scenes, of which
`mini` saw none. Learned: the pictures between them. Forgotten: everything else that
mini_report.py measures.

CHECKPOINT is whatever `twinlens train --model` takes: our own folder (config.json,
weights.safetensors, inputs.json and the tokenizer's files), or a published one. Rates are the
command's own defaults, so nothing here is chosen by the held-out pictures. Everything is in WORK,
and the same command goes on where it was stopped.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from labelled import Figures, quick_copy, remembered_figures, training_source
from mini_report import LABELLED, LabelledSet, report
from twinlens.cli.train_command import FINE_TUNING_RATE, LORA_RATE
from twinlens.data.augment import Augment
from twinlens.data.pairs import Source
from twinlens.model.attention import Block
from twinlens.model.checkpoint import load_checkpoint, save_checkpoint
from twinlens.model.clip import Clip
from twinlens.runtime.load import load_model
from twinlens.train.config import LoraConfig, OptimizerConfig, TrainConfig
from twinlens.train.log import StepRecord
from twinlens.train.loop import train

BATCH = 48  # of an EfficientNet-Lite2 at 256 px about 7 GB of activations; 6 labels need no more
EPOCHS = 4.0
RANK = 8
MIDDLE = 0.5  # of the way from the weights before to the fine-tuned ones
ARMS = ("before", "lora", "full", "halfway")
LEARNED = "scenes"  # figures that begin with it are of the set that is learned
SCENES = LabelledSet("scenes/val-*.tar.gz")
TRAINED_ON = SCENES._replace(odd=False)
MEASURED = {name: s for name, s in LABELLED.items() if not name.startswith(LEARNED)} | {
    "scenes, odd keys (6-way)": SCENES._replace(odd=True)
}

TowersChoice = Literal["both", "image", "text"]


def adaptable_towers(model: Clip) -> TowersChoice:
    """The towers that adapters can be put on: those with attention blocks.

    Raises SystemExit for a model without any.
    """
    towers = {"image": model.image_tower, "text": model.text_tower}
    found = [
        side
        for side, tower in towers.items()
        if any(isinstance(module, Block) for module in tower.modules())
    ]
    if not found:
        raise SystemExit("neither tower has attention blocks: there is nothing to adapt")
    if len(found) == 2:
        return "both"
    return "image" if found == ["image"] else "text"


def settings(model: str, source: Source, *, lora: LoraConfig | None, **changes: Any) -> TrainConfig:
    """One arm's run; both arms differ in `lora` and the rate alone."""
    values: dict[str, Any] = {
        "model": model,
        "data": (source,),
        "augment": Augment(flip=0.5),
        "epochs": EPOCHS,
        "batch": BATCH,
        "lora": lora,
        "optimizer": OptimizerConfig(learning_rate=LORA_RATE if lora else FINE_TUNING_RATE),
        "save_every": 25,
        "keep": 1,
    }
    return TrainConfig(**{**values, **changes})


def write_between(before: Path, after: Path, target: Path, share: float = MIDDLE) -> Path:
    """A checkpoint `share` of the way from one to another of the same sizes, number by number."""
    if not target.exists():
        partial = target.with_name(f".{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(before, partial)  # its tokenizer and preprocessing
        model, other = load_checkpoint(before), load_checkpoint(after).state_dict()
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if value.is_floating_point():  # batch norms count their batches in integers
                    value.lerp_(other[name], share)
        save_checkpoint(model, partial)
        partial.rename(target)
    return target


def measured(runtime: str, shared: Path) -> Figures:
    """What mini_report.py measures, of scenes only what was not trained on."""
    return report(runtime, shared, MEASURED)


def run(
    model: str,
    shared: Path,
    work: Path,
    *,
    epochs: float = EPOCHS,
    rank: int = RANK,
    rates: tuple[float, float] = (LORA_RATE, FINE_TUNING_RATE),
    quick: bool = False,
    plot: Path | None = None,
    threads: int | None = None,
    measure: Callable[[str, Path], Figures] = measured,
) -> dict[str, Any]:
    """Train both arms, or go on, and measure all four models.

    `rates` are of the adapters and of all weights. `measure` takes a runtime folder and SHARED.
    """
    if threads:
        torch.set_num_threads(threads)
    changes: dict[str, Any] = {"epochs": epochs}
    if quick:
        shared = quick_copy(shared, work / "quick")
        changes = {"epochs": 1.0, "batch": 16}
    towers = adaptable_towers(load_model(model))
    if towers != "both":
        print(f"only the {towers} tower has attention blocks: the other gets no adapters")
    source = training_source(TRAINED_ON, shared, work / "shards" / "scenes_even.tar")
    arms = {"lora": LoraConfig(rank=rank, alpha=2.0 * rank, towers=towers), "full": None}
    training: dict[str, Any] = {}
    for (arm, lora), rate in zip(arms.items(), rates, strict=True):
        optimizer = OptimizerConfig(learning_rate=rate)
        config = settings(model, source, lora=lora, optimizer=optimizer, **changes)
        print(f"{arm}:")
        result = train(config, work / arm, progress=_show, say=print)
        training[arm] = _training(work / arm, config, result.steps)
    before, full = work / "lora" / "start", work / "full" / "last"
    folders = {
        "before": before,
        "lora": work / "lora" / "last",
        "full": full,
        "halfway": write_between(before, full, work / "halfway"),
    }
    figures = {
        arm: remembered_figures(
            folder, work / f"{arm}.json", lambda runtime: measure(str(runtime), shared)
        )
        for arm, folder in folders.items()
    }
    if plot is not None:
        plot_bars(figures, plot)
    return {
        "recipe": "lora",
        "quick": quick,
        "towers": towers,
        "rank": rank,
        "training": training,
        "figures": figures,
        "summary": {arm: summary(figures["before"], figures[arm]) for arm in ARMS[1:]},
    }


def _training(folder: Path, config: TrainConfig, steps: int) -> dict[str, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "learning_rate": config.optimizer.learning_rate,
        "steps": steps,
        "minutes": sum(config.batch / line["pairs_per_second"] for line in lines) / 60,
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
    }


def summary(before: Figures, after: Figures) -> Figures:
    """What was learned and what forgotten, each the mean change of its figures."""
    changes = {name: after[name] - value for name, value in before.items()}
    learned = [change for name, change in changes.items() if name.startswith(LEARNED)]
    other = [change for name, change in changes.items() if not name.startswith(LEARNED)]
    return {
        "learned": sum(learned) / len(learned),
        "elsewhere": sum(other) / len(other),
        "worst_elsewhere": min(other),
    }


def plot_bars(figures: dict[str, Figures], path: Path) -> None:
    """Each figure of each arm, recall@5 left out, as grouped bars."""
    from matplotlib.figure import Figure

    names = [name for name in figures["before"] if not name.endswith("@5")]
    figure = Figure(figsize=(8, 0.75 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(ARMS)
    for number, arm in enumerate(ARMS):
        places = [row + number * height for row in range(len(names))]
        values = [100 * figures[arm][name] for name in names]
        bars = axes.barh(places, values, height, label=arm)
        axes.bar_label(bars, fmt="%.1f", fontsize=6, padding=2)
    middle = (len(ARMS) - 1) * height / 2
    axes.set_yticks([row + middle for row in range(len(names))], _short(names), fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="%", xlim=(0, 105), title="Fine-tuned on scenes: learned and forgotten")
    axes.legend(fontsize="small", loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _short(names: list[str]) -> list[str]:
    return [name.removesuffix(" accuracy").replace("_", " ") for name in names]


def _show(record: StepRecord) -> None:
    if record.step % 5 == 0 or record.step == record.total_steps:
        print(record.line(), flush=True)


def table(result: dict[str, Any]) -> str:
    """The figures for people: before in per cent, the arms as changes in points."""
    figures = result["figures"]
    rows = [f"{'':44} {'before':>8} " + " ".join(f"{arm:>8}" for arm in ARMS[1:])]
    for name, short in zip(figures["before"], _short(list(figures["before"])), strict=True):
        before = figures["before"][name]
        changes = [100 * (figures[arm][name] - before) for arm in ARMS[1:]]
        rows.append(f"{short:44} {before:8.2%} " + " ".join(f"{c:+8.2f}" for c in changes))
    for what in ("learned", "elsewhere", "worst_elsewhere"):
        changes = [100 * result["summary"][arm][what] for arm in ARMS[1:]]
        title = f"{what.replace('_', ' ')}, points"
        rows.append(f"{title:44} {'':8} " + " ".join(f"{change:+8.2f}" for change in changes))
    for arm, values in result["training"].items():
        rows.append(
            f"{arm}: {values['steps']} steps at {values['learning_rate']:g}, "
            f"{values['minutes']:.1f} minutes; loss {values['first_loss']:.3f} to "
            f"{values['last_loss']:.3f} nats"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, metavar="CHECKPOINT")
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/")
    parser.add_argument("--work", type=Path, required=True, help="both runs and what they read")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="[default: %(default)g]")
    parser.add_argument("--rank", type=int, default=RANK, help="[default: %(default)s]")
    parser.add_argument("--lora-lr", type=float, default=LORA_RATE, help="[default: %(default)g]")
    parser.add_argument(
        "--full-lr", type=float, default=FINE_TUNING_RATE, help="[default: %(default)g]"
    )
    parser.add_argument("--quick", action="store_true", help="a 25th of the data, one epoch")
    parser.add_argument("--threads", type=int, metavar="N", help="[default: all cores]")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the bars")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    result = run(
        options.model,
        options.shared,
        options.work,
        epochs=options.epochs,
        rank=options.rank,
        rates=(options.lora_lr, options.full_lr),
        quick=options.quick,
        plot=options.plot,
        threads=options.threads,
    )
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
