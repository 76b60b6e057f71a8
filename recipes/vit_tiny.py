"""A ViT-tiny and a small text transformer from random weights: training shown to be correct.

    pip install -e '.[train]'
    python recipes/vit_tiny.py --shared ../shared --work /var/tmp/vit_tiny --plot curve.png

Not a model to use: 6,200 labelled pictures of 64 px (tinyimagenet's 5,000 in all its 200
labels, clothing's keys below 1200) are a hundred-thousandth of what CLIP saw. What it shows is
that `twinlens.train` makes two towers that know nothing into two that name pictures neither
has seen. Everything is in WORK, and the same command goes on where it was stopped.

Nothing is chosen by the held-out pictures: the figures are those of the last step.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from labelled import (
    CLOTHING_TRAIN,
    TINY_TRAIN,
    Figures,
    commonest_share,
    quick_copy,
    remembered_figures,
    training_source,
    validation_source,
)
from mini_report import CLOTHING_HELD_OUT, TINY_VAL, zero_shot_accuracy
from twinlens.config import ClipConfig, ClipTextConfig, VitConfig
from twinlens.data.augment import Augment
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.embed import Embedder
from twinlens.model.checkpoint import save_checkpoint
from twinlens.model.clip import Clip
from twinlens.runtime.load import INPUTS_NAME, InputsConfig
from twinlens.train.config import OptimizerConfig, TrainConfig
from twinlens.train.log import StepRecord
from twinlens.train.loop import train

# 64 patches, as the presets' vit-b-32 has 49: tinyimagenet's own 64 px in patches of 8. Width and
# heads are ViT-Ti's (Touvron et al. 2021, arXiv:2012.12877, table 1) with half its 12 layers.
CONFIG = ClipConfig(
    image=VitConfig(
        width=192,
        layers=6,
        heads=3,
        mlp_width=768,
        image_size=64,
        patch_size=8,
        # An untrained class token hardly sees the picture: see EASY_START.
        pool="mean",
    ),
    # The words are 217 labels and five templates. Each channel costs 49,408 embeddings.
    text=ClipTextConfig(width=128, layers=3, heads=2, mlp_width=512, context=32),
    dim=128,
    log_scale_init=math.log(5),
)
# Trap: with a class token, CLIP's scale of 14, its epsilon of 1e-6 and a rate of 1e-3 the towers
# gave every input one embedding within 12 steps. The loss is ln(batch) then, the gradient was
# below 0.005, and 48 steps later nothing had moved. What the embeddings have in common
# is punished with the square of the scale, what tells labels apart is rewarded with the scale.
EASY_START = OptimizerConfig(learning_rate=5e-4, weight_decay=0.1, warmup=0.1, epsilon=1e-8)
PREPROCESS = Preprocess(image_size=64, resize="squash", mean=(0.5,) * 3, std=(0.25,) * 3)
BATCH = 250
EPOCHS = 24.0
STEPS_PER_EPOCH = (5_000 + 1_200) // BATCH
VALIDATE_EPOCHS = 5
HELD_OUT = {"tinyimagenet val (200-way)": TINY_VAL, "clothing (17-way)": CLOTHING_HELD_OUT}
SAME_WORDS = 1e-5  # similarities of one text's copies differ by rounding only


def write_random(folder: Path, seed: int = 0) -> Path:
    """CONFIG with random weights, as a checkpoint folder for TrainConfig.model."""
    if not (folder / INPUTS_NAME).exists():
        torch.manual_seed(seed)
        save_checkpoint(Clip(CONFIG), folder)
        tokenizer = TokenizerConfig(kind="clip_bpe", context=CONFIG.text.context)
        InputsConfig(preprocess=PREPROCESS, tokenizer=tokenizer).write(folder / INPUTS_NAME)
    return folder


def label_accuracy(
    similarity: Float[np.ndarray, "image caption"], owner: Int[np.ndarray, " caption"]
) -> Figures:
    """Share of pictures to which no other label's text is as near as their own's: a Score.

    Each picture has one caption, its label's, so a label's text comes once for each of its
    pictures. A picture that is equally near to all texts counts against us.
    """
    own = np.zeros(len(similarity), dtype=similarity.dtype)
    own[owner] = similarity[owner, np.arange(len(owner))]
    nearest = own >= similarity.max(axis=1) - SAME_WORDS
    tells_apart = np.ptp(similarity, axis=1) > 2 * SAME_WORDS
    return {"accuracy": float((nearest & tells_apart).mean())}


def settings(shared: Path, work: Path, *, epochs: float, quick: bool) -> TrainConfig:
    """The run: what it reads and how it learns.

    Few pictures are seen often, hence strong crops, flips and colours, and half of the patches
    left out, which halves the tower's time as well (Li et al. 2023, arXiv:2212.00794).
    """
    shards = work / "shards"
    batch = 16 if quick else BATCH
    data = (
        training_source(TINY_TRAIN, shared, shards / "tiny_train.tar"),
        training_source(CLOTHING_TRAIN, shared, shards / "clothing_train.tar"),
    )
    return TrainConfig(
        model=str(write_random(work / "random")),
        data=data,
        val=(validation_source(TINY_VAL, shared, shards / "tiny_val.tar"),),
        augment=Augment(
            crop_scale=(0.4, 1.0), flip=0.5, brightness=0.3, contrast=0.3, saturation=0.3, grey=0.1
        ),
        epochs=epochs,
        batch=batch,
        optimizer=EASY_START,
        patch_dropout=0.5,
        save_every=STEPS_PER_EPOCH,
        keep=1,
        validate_every=None if quick else VALIDATE_EPOCHS * STEPS_PER_EPOCH,
        validate_pairs=1000,
    )


def plot_curve(lines: list[dict[str, Any]], chance: float, path: Path) -> None:
    """Loss of each step, and accuracy on held-out pictures, from the run's log."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    upper.plot([line["step"] for line in lines], [line["loss"] for line in lines], linewidth=1)
    upper.set(ylabel="loss, nats", title="ViT-tiny from random weights, 6,200 labelled pictures")
    held = [line for line in lines if "validation" in line]
    shares = [100 * line["validation"]["accuracy"] for line in held]
    lower.plot([line["step"] for line in held], shares, marker="o", label="one prompt a label")
    lower.axhline(100 * chance, color="grey", linestyle=":", label=f"chance, {chance:.1%}")
    lower.set(xlabel="step", ylabel="tinyimagenet val, %", ylim=(0, None))
    lower.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def run(
    shared: Path,
    work: Path,
    *,
    epochs: float = EPOCHS,
    quick: bool = False,
    plot: Path | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """Train, or go on, and measure before and after."""
    if threads:
        torch.set_num_threads(threads)
    if quick:
        shared, epochs = quick_copy(shared, work / "quick"), 1.0
    folder = work / "run"
    config = settings(shared, work, epochs=epochs, quick=quick)
    result = train(config, folder, progress=_show, say=print, score=label_accuracy)

    def measure(runtime: Path) -> Figures:
        embedder = Embedder(runtime, batch_size=32)
        return {name: zero_shot_accuracy(embedder, shared, held) for name, held in HELD_OUT.items()}

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figures = {
        "recipe": "vit_tiny",
        "quick": quick,
        "steps": result.steps,
        "pairs": result.steps * config.batch,
        "training_minutes": sum(config.batch / line["pairs_per_second"] for line in lines) / 60,
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "before": remembered_figures(folder / "start", work / "before.json", measure),
        "after": remembered_figures(folder / "last", work / "after.json", measure),
        "commonest_label": {name: commonest_share(shared, s) for name, s in HELD_OUT.items()},
    }
    if plot is not None:
        plot_curve(lines, 1 / 200, plot)
    return figures


def _show(record: StepRecord) -> None:
    if record.step % STEPS_PER_EPOCH == 0 or record.validation is not None:
        held = "".join(f"  val {k} {v:.4f}" for k, v in (record.validation or {}).items())
        print(record.line().partition("  val")[0] + held, flush=True)


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [f"{'':28} {'before':>8} {'after':>8} {'commonest label':>16}"]
    for name in HELD_OUT:
        shares = [figures[key][name] for key in ("before", "after", "commonest_label")]
        rows.append(f"{name:28} {shares[0]:8.2%} {shares[1]:8.2%} {shares[2]:16.2%}")
    rows.append(
        f"{figures['steps']:,} steps, {figures['pairs']:,} pairs, "
        f"{figures['training_minutes']:.1f} minutes; loss {figures['first_loss']:.3f} to "
        f"{figures['last_loss']:.3f} nats"
    )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/")
    parser.add_argument("--work", type=Path, required=True, help="the run and what it reads")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="[default: %(default)g]")
    parser.add_argument("--quick", action="store_true", help="a 25th of the data, one epoch")
    parser.add_argument("--threads", type=int, metavar="N", help="[default: all cores]")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the curve")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures here")
    options = parser.parse_args()
    figures = run(
        options.shared,
        options.work,
        epochs=options.epochs,
        quick=options.quick,
        plot=options.plot,
        threads=options.threads,
    )
    print(table(figures))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
