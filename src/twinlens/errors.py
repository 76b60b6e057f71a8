"""Every error twinlens raises on purpose; nothing else in the package defines one.

Each message says what happened, with what, and what to do now, for someone who
has not read the code. Only `cli/` turns them into exit codes.

    TwinlensError
    ├─ ConfigError         (ValueError)   unknown key, impossible sizes
    ├─ UnreadableImage     (ValueError)   source, reason
    ├─ CheckpointMismatch  (ValueError)   the first few differing names and shapes
    ├─ ModelNotFound       (ValueError)   no such model name or folder
    ├─ QueryError          (ValueError)   a search that cannot be understood
    ├─ IndexModelMismatch  (ValueError)   index built by another model
    ├─ IndexCorrupt        (RuntimeError) index files that contradict each other
    ├─ IndexBusy           (RuntimeError) another process is writing the index
    ├─ TrainingStopped     (RuntimeError) a run that ended before its last step
    └─ MissingExtra        (ImportError)  package, install command
"""

import importlib.util


class TwinlensError(Exception):
    """Base of every deliberate error: catch this to catch them all."""


class ConfigError(TwinlensError, ValueError):
    """A configuration with an unknown key or impossible sizes."""


class UnreadableImage(TwinlensError, ValueError):
    """A picture that cannot be decoded; `source` names it and `reason` says why.

    `lasting` is False when the same bytes may be readable tomorrow: a package is absent.
    """

    def __init__(self, source: str, reason: str, *, lasting: bool = True) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason
        self.lasting = lasting


class CheckpointMismatch(TwinlensError, ValueError):
    """Weights that do not fit the model they were meant for."""


class ModelNotFound(TwinlensError, ValueError):
    """Neither a built-in model name nor a folder that holds a model."""


class QueryError(TwinlensError, ValueError):
    """A search query that cannot be understood or adds up to nothing."""


class IndexModelMismatch(TwinlensError, ValueError):
    """An index whose vectors came from another model than the one asked for."""


class IndexCorrupt(TwinlensError, RuntimeError):
    """Index files that contradict each other."""


class IndexBusy(TwinlensError, RuntimeError):
    """Another process is writing the same index."""


class TrainingStopped(TwinlensError, RuntimeError):
    """A training run that ended before its last step.

    `signal` is the number of the signal that asked for it, after which a checkpoint was
    written; None where the loss or a gradient was no number in step `step` (counted from 1).
    """

    def __init__(self, message: str, *, step: int, signal: int | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.signal = signal


class MissingExtra(TwinlensError, ImportError):
    """An optional package is absent; the message holds the command that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'twinlens[{extra}]'"
        )
        self.package = package
        self.extra = extra


def require_package(package: str, *, extra: str, purpose: str) -> None:
    """Raises MissingExtra unless `package` is installed; does not import it."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra, purpose)
