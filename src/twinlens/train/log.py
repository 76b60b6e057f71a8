"""What a run tells while it runs: a JSON line per step, TensorBoard if it is there, a line.

A continued run drops what was logged after the checkpoint it continues from, so that each
step stands in the log once.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinlens.errors import TwinlensError

LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """One step's figures."""

    step: int  # steps done, this one included
    total_steps: int
    epoch: float  # passes over the pairs so far
    loss: float  # of the whole batch, in nats
    learning_rate: float
    logit_scale: float
    gradient_norm: float  # before it was limited
    pairs_per_second: float
    data_wait: float  # share of the step's time spent waiting for pictures
    bad_samples: int = 0  # so far
    validation: dict[str, float] | None = None  # of the weights after this step

    def line(self) -> str:
        """For people."""
        parts = [
            f"step {self.step:,}/{self.total_steps:,}",
            f"epoch {self.epoch:.2f}",
            f"loss {self.loss:.4f}",
            f"scale {self.logit_scale:.1f}",
            f"grad {self.gradient_norm:.2f}",
            f"{self.pairs_per_second:,.0f} pairs/s",
            f"data wait {self.data_wait:.0%}",
        ]
        if self.bad_samples:
            parts.append(f"{self.bad_samples:,} bad samples")
        if self.validation:
            parts += [f"val {name} {value:.4f}" for name, value in short(self.validation).items()]
        return "  ".join(parts)


def short(validation: dict[str, float]) -> dict[str, float]:
    """The few figures that a line has room for."""
    names = {
        "text_to_image_recall@1": "t2i@1",
        "image_to_text_recall@1": "i2t@1",
        "loss": "loss",
    }
    return {short: validation[name] for name, short in names.items() if name in validation}


class RunLog:
    """The open log of a run, from step `done` on."""

    def __init__(self, folder: Path, done: int) -> None:
        self.path = folder / LOG_NAME
        kept = [line for line in read_log(folder) if line["step"] <= done]
        partial = folder / f".{LOG_NAME}.partial"
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        self._board = _open_board(folder / "tensorboard", done)

    def write(self, record: StepRecord) -> None:
        """Add a step. Raises TwinlensError when the disk takes no more."""
        values = {k: v for k, v in asdict(record).items() if v is not None}
        try:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        except OSError as error:
            raise TwinlensError(
                f"{self.path} cannot be written ({error.strerror}). Make room, then run the same "
                f"command again: it continues from the last checkpoint."
            ) from error
        if self._board is not None:
            for name in ("loss", "learning_rate", "logit_scale", "gradient_norm"):
                self._board.add_scalar(f"train/{name}", values[name], record.step)
            for name in ("pairs_per_second", "data_wait"):
                self._board.add_scalar(f"speed/{name}", values[name], record.step)
            for name, value in (record.validation or {}).items():
                self._board.add_scalar(f"validation/{name}", value, record.step)

    def close(self) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of a run's log; a line that a crash cut off is left out."""
    path = folder / LOG_NAME
    lines = []
    if path.exists():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(text)
            except ValueError:
                continue
            if isinstance(values, dict) and "step" in values:
                lines.append(values)
    return lines


def _open_board(folder: Path, done: int) -> Any:
    """TensorBoard's writer, or None where it is not installed."""
    # It says on stderr that TensorFlow is absent; nobody asked.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=done + 1)
