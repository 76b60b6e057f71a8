"""Looks at the environment it runs in: is it small, free of PyTorch, and able to search?

Run by scripts/test inside a fresh virtual environment with only the base install.
"""

import argparse
import importlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path


def size_bytes(folder: Path) -> int:
    """What the files of a folder occupy, links not followed."""
    return sum(p.lstat().st_blocks * 512 for p in folder.rglob("*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-mb", type=float, required=True)
    limit_mb: float = parser.parse_args().limit_mb
    import twinlens
    import twinlens.errors as twinlens_errors

    heavy = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    if heavy:
        sys.exit(f"the base install brought {', '.join(heavy)}")
    for module in ("twinlens.model.clip", "twinlens.train.losses"):
        try:
            importlib.import_module(module)
        except twinlens_errors.MissingExtra as error:
            assert "pip install 'twinlens[train]'" in str(error), error
        else:
            sys.exit(f"{module} works without the extra train?")
    size_mb = size_bytes(Path(sys.prefix)) / 1e6
    print(f"base install, whole virtual environment: {size_mb:.0f} MB (limit {limit_mb:.0f})")
    if size_mb > limit_mb:
        sys.exit("the base install is too large")
    with tempfile.TemporaryDirectory() as index_dir:
        command = [sys.executable, "-m", "twinlens", "search", str(twinlens.SAMPLES), "a dog"]
        command += ["--top", "3", "--index-dir", index_dir]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
