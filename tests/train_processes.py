"""Real processes for the tests of training: one, or several as torchrun starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "train_run.py"
MEANS_PROGRAM = Path(__file__).parent / "train_means_run.py"
SOURCES = Path(__file__).parent.parent / "src"


def start(
    run: Path,
    model: Path,
    environment: dict[str, str] | None = None,
    *,
    program: Path = PROGRAM,
    **settings: object,
):
    arguments = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return subprocess.Popen(
        [sys.executable, str(program), str(run), f"model={json.dumps(str(model))}", *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCES), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]


def start_together(count: int, run: Path, model: Path, **settings: object):
    """As torchrun does: every process is told who it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [
        start(run, model, {**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, **settings)
        for r in range(count)
    ]
