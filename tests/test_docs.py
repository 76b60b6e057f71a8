"""The documentation names every command and option there is, and its Python really runs."""

import re
from pathlib import Path

import pytest
import typer

from twinlens.cli.main import app

ROOT = Path(__file__).parent.parent


def commands(group=None, prefix=""):
    """Options by command; a command within a group is `data check`."""
    group = group or typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            options = (o for p in command.params for o in (*p.opts, *p.secondary_opts))
            found[f"{prefix}{name}"] = sorted(o for o in options if "--" in o)
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_is_in_the_docs(name):
    text = (ROOT / "docs" / "commands.md").read_text()
    section = text.split(f"## twinlens {name}\n")[1].split("\n## ")[0]
    assert [o for o in commands()[name] if not re.search(rf"{o}\b", section)] == []


def test_every_command_in_the_readme_exists():
    used = re.findall(r"^ +twinlens (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert used and set(used) <= {name.split()[0] for name in commands()}


def test_every_local_link_in_the_docs_leads_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for name in ("photos/sea.png", "beach.jpg", "dog.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert "sea.png" in capsys.readouterr().out
    assert names["cosines"].shape == (2, 2)


def test_the_python_about_published_models_runs(own_folder, capsys):
    import twinlens

    names = {"checkpoint": own_folder, "photo": twinlens.SAMPLES / "plasma_dog.jpg"}
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL
    )
    exec(block, names)
    assert names["logits"].shape == (1, 2) and names["hidden"].shape == (2, 12, 16)
    assert capsys.readouterr().out.endswith("None\n")
