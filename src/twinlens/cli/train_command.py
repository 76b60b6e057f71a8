"""`twinlens train`: pictures with captions to a model, from a laptop to many GPUs.

Options become a TrainConfig; the same values can stand in a file, which options then change.
What training is lies in train/.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twinlens.cli.console import note
from twinlens.errors import ConfigError, TrainingStopped, require_package
from twinlens.text import printable

if TYPE_CHECKING:
    from twinlens.train.log import StepRecord

DEFAULT_PRESET = "vit-ti-16"
FROM_SCRATCH_RATE, FINE_TUNING_RATE, LORA_RATE = 5e-4, 1e-5, 2e-4


def train_command(
    config_file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG.json]",
            help="Settings; the options below come on top of them.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Pictures, with captions beside them or --captions."),
    ] = None,
    captions: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="CSV, JSON Lines or Parquet: pictures and captions."),
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="WebDataset shards: a path, *, {0000..0009}, a URL."),
    ] = None,
    val: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Held-out pairs, of any kind: recall is measured there."),
    ] = None,
    run: Annotated[
        Path,
        typer.Option(
            "--run",
            "--run-folder",  # torchrun's parser takes --run for one of its own
            metavar="FOLDER",
            help="The run's folder; a run in it is continued. Under torchrun: --run-folder.",
        ),
    ] = Path("run"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="What to start from: a checkpoint, a pulled model, or a preset with random "
            "weights (vit-ti-16, vit-s-32, vit-s-16, vit-b-32, vit-b-16, vit-l-14). "
            f"[default: {DEFAULT_PRESET}]",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Pixels. [default: the model's own]")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(metavar="N", help="Passes over the pairs. [default: 10]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Steps, instead of epochs.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="Pairs that one step tells apart, over all processes. [default: 256]",
        ),
    ] = None,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Take each process's share of the batch in N parts: less memory, same gradients.",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            help=f"At its highest. [default: {FROM_SCRATCH_RATE:g} for a preset, "
            f"{FINE_TUNING_RATE:g} for a checkpoint, {LORA_RATE:g} with --lora]",
        ),
    ] = None,
    layer_decay: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="Each layer learns this much slower than the next."),
    ] = None,
    loss: Annotated[
        Literal["contrastive", "sigmoid"] | None,
        typer.Option(help="CLIP's or SigLIP's. [default: contrastive]", show_default=False),
    ] = None,
    hardness: Annotated[
        float | None,
        typer.Option(
            metavar="BETA",
            help="Weigh a negative the more the closer it is; 0 to about 1. [default: 0]",
        ),
    ] = None,
    negative_captions: Annotated[
        Literal["none", "swap"] | None,
        typer.Option(
            help="Tell captions with two words exchanged apart as well. [default: none]",
            show_default=False,
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(metavar="RANK", min=1, help="Learn low-rank adapters instead of weights."),
    ] = None,
    lock_image: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only the image tower's last N layers learn."),
    ] = None,
    lock_text: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Only the text tower's last N layers learn."),
    ] = None,
    unlock_every: Annotated[
        float | None,
        typer.Option(
            metavar="STEPS",
            help="After so many steps (below 1: this share of all) one more layer of each locked "
            "tower learns too.",
        ),
    ] = None,
    patch_dropout: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Leave so many patches out.")
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(metavar="DECAY", help="Save a moving average of the weights, as 0.999."),
    ] = None,
    teacher: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A checkpoint to learn from as well; may be repeated."),
    ] = None,
    feature_weight: Annotated[
        float | None,
        typer.Option(
            metavar="WEIGHT",
            help="Follow the teachers' embeddings too, not only their similarities. [default: 0]",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="[default: 0]")] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None,
        typer.Option(help="[default: a GPU if there is one]", show_default=False),
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option(help="[default: bf16 on a GPU, else fp32]", show_default=False),
    ] = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Compute activations twice: less memory.")
    ] = False,
    compile_towers: Annotated[
        bool, typer.Option("--compile", help="Let torch.compile make the towers faster.")
    ] = False,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Share the weights between processes (torchrun).")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="That decode pictures. [default: 2]")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(metavar="STEPS", min=1, help="[default: 500]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a model on pictures with captions, or continue a run that was stopped.

    The run's folder holds everything: checkpoints, log, plots, the draft of a model
    card. RUN/best is the model, for --model or twinlens convert.

    \b
      twinlens train --images photos/ --captions captions.csv
      twinlens train -m openai/vit-b-32 --lora 8 --shards "pairs/*.tar" --val val.tar
      twinlens train config.json --run runs/second --lr 1e-4
      torchrun --nproc-per-node 8 -m twinlens train config.json
    """
    require_package("torch", extra="train", purpose="training")
    from twinlens.data.pairs import source_from_text
    from twinlens.evaluate.retrieval import retrieval_scores
    from twinlens.train.config import TrainConfig
    from twinlens.train.loop import train

    settings = TrainConfig.read(config_file).to_dict() if config_file else {}
    data = _sources(images or [], captions or [], shards or [])
    given = {
        "data": data or None,
        "val": [source_from_text(text).to_dict() for text in val or []] or None,
        "model": model,
        "image_size": image_size,
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "loss": loss,
        "hardness": hardness,
        "negative_captions": negative_captions,
        "lora": {"kind": "lora", "rank": lora, "alpha": 2.0 * lora} if lora else None,
        "unlocked_image_layers": lock_image,
        "unlocked_text_layers": lock_text,
        "unlock_every": unlock_every,
        "patch_dropout": patch_dropout,
        "ema_decay": ema,
        "teachers": teacher or None,
        "feature_weight": feature_weight,
        "seed": seed,
        "device": device,
        "precision": precision,
        "recompute": recompute or None,
        "compile": compile_towers or None,
        "distribute": "fsdp" if fsdp else None,
        "workers": workers,
        "save_every": save_every,
    }
    settings |= {name: value for name, value in given.items() if value is not None}
    settings.setdefault("model", DEFAULT_PRESET)
    if not settings.get("data"):
        raise ConfigError(
            "There is nothing to learn from: give --images FOLDER, --captions FILE or --shards "
            "PATTERN, or a CONFIG.json with `data`."
        )
    _set_rate(settings, learning_rate, layer_decay, from_file=config_file is not None)
    config = TrainConfig.from_dict(settings)
    speaks = os.environ.get("RANK", "0") == "0"
    line = _Line()
    try:
        result = train(
            config,
            run,
            progress=line.show if speaks else _nothing,
            say=line.say if speaks else _nothing,
            score=retrieval_scores,
        )
    except TrainingStopped as error:
        if error.signal is None:
            raise
        line.end()
        if speaks:
            note(f"twinlens: {error}")
        raise typer.Exit(128 + error.signal) from error  # as a shell reports it
    except KeyboardInterrupt as error:  # before the first step, or the second one
        line.end()
        if speaks:
            note(f"stopped; the same command continues from the last checkpoint in {run}")
        raise typer.Exit(130) from error
    finally:
        line.end()
    if not speaks:
        return
    if as_json:
        print(
            json.dumps(
                {
                    "run": str(result.folder),
                    "steps": result.steps,
                    "loss": result.loss,
                    "best": str(result.best),
                    "best_step": result.best_step,
                    "validation": result.validation,
                },
                indent=2,
            )
        )
        return
    ended = "was finished already" if result.loss is None else f"loss {result.loss:.4f}"
    print(f"{result.folder}: {result.steps:,} steps, {ended}")
    print(f"  best checkpoint: {result.best} (step {result.best_step:,})")
    for name, value in result.validation.items():
        print(f"  {name.replace('_', ' '):24} {value:.4f}")
    print(f'Use it: twinlens search FOLDER "words" --model {result.best}')


def _sources(images: list[str], captions: list[str], shards: list[str]) -> list[dict[str, Any]]:
    """The sources that the options mean, as plain values."""
    from twinlens.data.pairs import FolderSource, ShardSource, TableSource

    found: list[FolderSource | TableSource | ShardSource] = []
    if captions and len(images) > 1:
        raise ConfigError(
            "With --captions there can be one --images folder, in which the files' pictures are. "
            "Put several sources into a CONFIG.json."
        )
    if captions:
        folder = images[0] if images else None
        found += [TableSource(path=path, images=folder) for path in captions]
    else:
        found += [FolderSource(path=path) for path in images]
    if shards:
        found.append(ShardSource(shards=tuple(shards)))
    return [source.to_dict() for source in found]


def _set_rate(
    settings: dict[str, Any],
    learning_rate: float | None,
    layer_decay: float | None,
    *,
    from_file: bool,
) -> None:
    """The optimiser's part of the settings, with a rate that suits what is trained."""
    from twinlens.train.start import PRESETS

    optimizer = dict(settings.get("optimizer", {}))
    if learning_rate is None and not from_file:
        if settings.get("lora"):
            learning_rate = LORA_RATE
        else:
            known = settings["model"] in PRESETS
            learning_rate = FROM_SCRATCH_RATE if known else FINE_TUNING_RATE
    if learning_rate is not None:
        optimizer["learning_rate"] = learning_rate
    if layer_decay is not None:
        optimizer["layer_decay"] = layer_decay
    settings["optimizer"] = optimizer


def _nothing(_: object) -> None:
    """What a process that does not speak does with what it is told."""


class _Line:
    """The progress of a run: one line that is written over in a terminal, else now and then one."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._shown = -1e9
        self._open = False

    def show(self, record: "StepRecord") -> None:
        now = time.monotonic()
        stays = record.validation is not None or record.step == record.total_steps
        if not stays and now - self._shown < (0.2 if self._terminal else 10.0):
            return
        self._shown = now
        if not self._terminal:
            note(record.line())
            return
        print(f"\r\x1b[2K{record.line()}", end="\n" if stays else "", file=sys.stderr, flush=True)
        self._open = not stays

    def say(self, message: str) -> None:
        self.end()
        note(printable(message))

    def end(self) -> None:
        if self._open:
            print(file=sys.stderr)
            self._open = False
