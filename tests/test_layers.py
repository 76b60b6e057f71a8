"""The package's layers: a file imports only from its own layer or those below it."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "twinlens"

# DESIGN.md: errors, config -> data, model, hub -> runtime -> embed -> train, evaluate, search
# -> apps -> server -> cli. Layers with equal numbers may not import each other.
LAYERS = {
    "errors": 0,
    "text": 0,
    "html_page": 1,
    "config": 1,
    "data": 2,
    "model": 2,
    "hub": 2,
    "runtime": 3,
    "embed": 4,
    "testing": 5,
    "train": 5,
    "evaluate": 5,
    "search": 5,
    "apps": 6,
    "server": 7,
    "cli": 8,
}
ANYWHERE = {"__init__", "__main__"}
HEAVY = {"torch": {"model", "train", "runtime/export.py", "runtime/verify.py"}}


def layer_of(path: Path, package: Path) -> str:
    return path.relative_to(package).parts[0].removesuffix(".py")


def imports_of(path: Path, name: str) -> set[str]:
    """Second parts of every `name.x` that the file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules = [node.module]
            if node.module == name:
                modules = [f"{name}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith(f"{name}.")}
    return found


def broken_edges(package: Path) -> list[str]:
    broken = []
    for path in sorted(package.rglob("*.py")):
        source = layer_of(path, package)
        if source in ANYWHERE:
            continue
        for target in imports_of(path, package.name) - {source}:
            if target in LAYERS and LAYERS[target] >= LAYERS[source]:
                broken.append(f"{path.relative_to(package)} ({source}) imports {target}")
    return broken


def test_no_file_imports_from_its_own_level_or_above():
    assert broken_edges(PACKAGE) == []


def test_every_file_belongs_to_a_layer():
    names = {layer_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")}
    assert names - ANYWHERE <= LAYERS.keys()


def test_a_forbidden_edge_is_named(tmp_path):
    package = tmp_path / "twinlens"
    (package / "data").mkdir(parents=True)
    (package / "data" / "bad.py").write_text("def f():\n    from twinlens.search import store\n")
    (package / "search").mkdir()
    (package / "search" / "good.py").write_text("from twinlens.data import bad\n")
    assert broken_edges(package) == ["data/bad.py (data) imports search"]


def test_only_the_training_side_imports_torch():
    for path in PACKAGE.rglob("*.py"):
        where = str(path.relative_to(PACKAGE))
        allowed = where in HEAVY["torch"] or where.split("/")[0] in HEAVY["torch"]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
        }
        assert allowed or "torch" not in names, f"{where} imports torch"
