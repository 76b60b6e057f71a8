"""What stays of a run for people: environment, plots, and the draft of a model card.

Reads the run's own log; trains nothing. Plots need matplotlib, of the extra `train`.
"""

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from twinlens.train.config import TrainConfig
from twinlens.train.log import read_log

_PACKAGES = ("twinlens", "torch", "numpy", "pillow", "safetensors", "tokenizers", "matplotlib")
Say = Callable[[str], None]


def write_environment(folder: Path) -> None:
    """`environment.json`: what the run's numbers may depend on besides its configuration."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    values = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "gpus": gpus,
        "packages": versions,
    }
    (folder / "environment.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_report(folder: Path, config: TrainConfig, validation: dict[str, float], say: Say) -> None:
    """`plots/*.png` and `README.md`, the draft of a model card."""
    lines = read_log(folder)
    if not lines:
        return
    plots = _write_plots(folder / "plots", lines, say)
    (folder / "README.md").write_text(
        _model_card(config, lines, validation, plots), encoding="utf-8"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _write_plots(folder: Path, lines: list[dict[str, Any]], say: Say) -> list[str]:
    """Names of the plots that were drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        say("no plots: they need matplotlib. Install it with: pip install 'twinlens[train]'")
        return []
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    curves = {
        "loss": ("nats", ["loss"]),
        "learning_rate": ("per step", ["learning_rate"]),
        "logit_scale": ("factor", ["logit_scale"]),
        "gradient_norm": ("before it was limited", ["gradient_norm"]),
        "speed": ("pairs per second", ["pairs_per_second"]),
    }
    names = []
    for name, (unit, keys) in curves.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [line["step"] for line in lines]
        for key in keys:
            axes.plot(steps, [line[key] for line in lines], linewidth=1)
        if name == "loss" and (held := _held_out(lines, "loss")):
            axes.plot(*zip(*held, strict=True), marker="o", label="held out, all pairs at once")
            axes.legend()
        axes.set(xlabel="step", ylabel=unit, title=name.replace("_", " "))
        figure.savefig(folder / f"{name}.png", dpi=120)
        names.append(f"{name}.png")
    recalls = sorted({key for line in lines for key in line.get("validation", {}) if key != "loss"})
    if recalls:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for key in recalls:
            held = _held_out(lines, key)
            axes.plot(*zip(*held, strict=True), marker="o", label=key.replace("_", " "))
        axes.set(xlabel="step", ylabel="share", title="validation")
        axes.legend(fontsize="small")
        figure.savefig(folder / "validation.png", dpi=120)
        names.append("validation.png")
    return names


def _held_out(lines: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [
        (line["step"], line["validation"][key])
        for line in lines
        if key in line.get("validation", {})
    ]


def _model_card(
    config: TrainConfig, lines: list[dict[str, Any]], validation: dict[str, float], plots: list[str]
) -> str:
    last = lines[-1]
    speeds = sorted(line["pairs_per_second"] for line in lines)
    sources = (
        "\n".join(f"- {source.name}" for source in config.data) or "- (passed in by a program)"
    )
    held = ", ".join(source.name for source in config.val) or "nothing"
    results = "\n".join(f"| {n.replace('_', ' ')} | {v:.4f} |" for n, v in validation.items())
    text = f"""# Model card (draft)

Written by `twinlens train`; what is in brackets is for a person to say.

## What it is

A CLIP that started from `{config.model}` and learned from pairs of pictures and texts with the
{config.loss} loss{" and low-rank adapters" if config.lora else ""}. The weights to use are in
`best/`: `Embedder("best")`, or `twinlens convert best OUT/`.

## Training

{last["step"]:,} steps of {config.batch:,} pairs ({last["epoch"]:.2f} passes over the data),
learning rate {config.optimizer.learning_rate:g}, weight decay {config.optimizer.weight_decay:g},
seed {config.seed}; every setting is in `config.json`, the machine in `environment.json`, every
step in `log.jsonl`. Median speed: {speeds[len(speeds) // 2]:,.1f} pairs per second. The last loss:
{last["loss"]:.4f} nats.

Data:

{sources}

[Licence and origin of the data; what is known of its gaps and of the people in it.]

## Results

Held out: {held}.

| figure | value |
|---|---|
{results or "| (nothing was held out) | |"}

## Use

[What it is for, and what it must not be used for. Known failures.]
"""
    if plots:
        text += (
            "\n## Curves\n\n" + "\n".join(f"![{p.split('.')[0]}](plots/{p})" for p in plots) + "\n"
        )
    return text
