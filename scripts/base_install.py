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

# What `python -m venv` puts into site-packages itself: 26 MB that no install of ours brings.
NOT_OURS = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "distutils-precedence")


def size_bytes(folder: Path) -> tuple[int, int]:
    """What the files of an environment occupy, links not followed: all of them, and ours."""
    whole = ours = 0
    for path in folder.rglob("*"):
        size = path.lstat().st_blocks * 512
        whole += size
        parts = path.relative_to(folder).parts
        below = parts[parts.index("site-packages") + 1 :] if "site-packages" in parts else ()
        ours += 0 if below and below[0].startswith(NOT_OURS) else size
    return whole, ours


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
    whole_mb, ours_mb = (size / 1e6 for size in size_bytes(Path(sys.prefix)))
    print(
        f"base install: {ours_mb:.1f} MB (limit {limit_mb:.0f}); "
        f"{whole_mb:.1f} with the environment's own pip and setuptools"
    )
    if ours_mb > limit_mb:
        sys.exit("the base install is too large")
    with tempfile.TemporaryDirectory() as index_dir:
        command = [sys.executable, "-m", "twinlens", "search", str(twinlens.SAMPLES), "a dog"]
        command += ["--top", "3", "--index-dir", index_dir]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
