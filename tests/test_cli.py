"""The command line, run in this process with a fake embedder. Run with: pytest tests/test_cli.py"""

import json
import os
import sqlite3
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from twinlens import embed
from twinlens.cli import search_command, thumbnails
from twinlens.search.photos import PhotoIndex, index
from twinlens.search.store import Index
from twinlens.testing import FakeEmbedder
from twinlens.text import printable

COLOURS = {"red.png": (250, 0, 0), "green.png": (0, 250, 0), "trip/blue.png": (0, 0, 250)}


@pytest.fixture(autouse=True)
def fake_embedder(monkeypatch):
    """The command's embedder: the fake, under whatever model name is asked for."""

    def make(model="mini", *, runtime="onnxruntime", threads=None, max_megapixels=180.0):
        return FakeEmbedder(name=os.fspath(model), dim=64 if model == "big" else 32)

    monkeypatch.setattr(embed, "Embedder", make)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, colour in COLOURS.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), colour).save(path)
    return tmp_path / "photos"


def test_index_says_what_it_did(run, folder):
    (folder / "broken.jpg").write_bytes(b"not a photo")
    result = run("index", "photos")
    assert (result.code, result.out) == (0, "")
    lines = result.err.splitlines()
    assert lines[0] == "skipped photos/broken.jpg: not a picture"
    assert lines[1].startswith("3 indexed, 1 skipped (3 new; ")


def test_index_again_names_only_what_is_new(run, folder):
    (folder / "broken.jpg").write_bytes(b"not a photo")
    run("index", "photos")
    (folder / "red.png").rename(folder / "rot.png")
    (folder / "green.png").unlink()
    lines = run("index", "photos").err.splitlines()
    assert lines[0].startswith("2 indexed, 1 skipped (1 renamed, 1 removed; ")
    assert lines[1].startswith("1 of the skipped files were named on an earlier run")
    assert "(nothing new; " in run("index", "photos").err


def test_index_as_json_holds_all_of_it(run, folder):
    (folder / "broken.jpg").write_bytes(b"not a photo")
    named = [{"path": "photos/broken.jpg", "reason": "not a picture"}]
    first = json.loads(run("index", "photos", "--json").out)
    assert (first["added"], first["indexed"]) == (3, 3)
    assert (first["skipped"], first["skipped_before"]) == (named, [])
    assert first["model"] == "mini-1:32"
    again = json.loads(run("index", "photos", "--json").out)
    assert (again["added"], again["unchanged"]) == (0, 3)
    assert (again["skipped"], again["skipped_before"]) == ([], named)


def test_search_indexes_first_and_prints_score_and_path(run, folder):
    result = run("search", "photos", "photos/red.png")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[:2] == [" score  photo", " 1.000  photos/red.png"]
    assert len(lines) == 1 + 3
    assert result.err.startswith("3 indexed, 0 skipped (3 new; ")
    assert run("search", "photos", "photos/red.png").err == ""


def test_search_as_json(run, folder):
    result = run("search", "photos", "photos/red.png", "--json", "--top", "1")
    assert json.loads(result.out) == {
        "query": "photos/red.png",
        "model": "mini-1:32",
        "indexed": 3,
        "results": [{"rank": 1, "score": 1.0, "path": "photos/red.png"}],
    }


@pytest.mark.parametrize(
    ("typed", "query"),
    [
        (["a", "red", "car"], "a red car"),
        (["a dog", "+", "2:snow", "-", "people"], "a dog + 2:snow - people"),
        (["a dog", "-0.5:people"], "a dog - 0.5:people"),
        (["a dog", "-a", "snow", "-s", "2:people"], "a dog + snow - 2:people"),
        (["-s", "people"], "- people"),
        (["-", "people"], "- people"),
        (["--", "--top"], "--top"),
    ],
)
def test_ways_to_type_a_query(run, folder, typed, query):
    assert json.loads(run("search", "photos", "--json", *typed).out)["query"] == query


def test_subtracting_a_photo_puts_it_last(run, folder):
    result = run("search", "photos", "-", "photos/red.png", "--json")
    last = json.loads(result.out)["results"][-1]
    assert last == {"rank": 3, "score": -1.0, "path": "photos/red.png"}


def test_no_index_searches_what_is_there(run, folder):
    none = run("search", "photos", "x", "--no-index")
    assert none.code == 1
    assert none.err == ("twinlens: photos has no index yet. Make one: `twinlens index photos`.\n")
    run("index", "photos")
    (folder / "new.png").write_bytes(b"new")
    assert json.loads(run("search", "photos", "x", "--no-index", "--json").out)["indexed"] == 3
    assert json.loads(run("search", "photos", "x", "--json").out)["indexed"] == 4


def test_another_model_is_refused_and_the_message_s_own_commands_work(run, folder):
    run("index", "photos", "--model", "small")
    refused = run("search", "photos", "x", "--model", "big")
    assert refused.code == 1
    assert refused.err == (
        "twinlens: photos/.twinlens was built with small (32 numbers per image), but this model "
        "is big (64). Search with `--model small`, or rebuild: "
        "`twinlens index photos --model big --rebuild`.\n"
    )
    assert run("search", "photos", "x", "--model", "small").code == 0
    assert run("search", "photos", "x").code == 0, "the index knows its model"
    assert "(3 new; " in run("index", "photos", "--model", "big", "--rebuild").err
    assert json.loads(run("search", "photos", "x", "--json").out)["model"] == "big-1:64"


def cut_vectors(index_dir):
    os.truncate(index_dir / "vectors.f32", 0)


def overwrite_database(index_dir):
    (index_dir / "index.sqlite").write_bytes(b"nonsense" * 1000)


def raise_format(index_dir):
    database = sqlite3.connect(index_dir / "index.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()


@pytest.mark.parametrize("damage", [cut_vectors, overwrite_database, raise_format])
def test_an_index_that_cannot_be_used_can_be_rebuilt_as_the_message_says(run, folder, damage):
    run("index", "photos")
    damage(folder / ".twinlens")
    refused = run("search", "photos", "x")
    assert refused.code == 1
    assert "`twinlens index photos --rebuild`" in refused.err
    assert run("index", "photos", "--rebuild").code == 0
    assert run("search", "photos", "x").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "missing"], "there is no folder missing."),
        (["index", "photos/red.png"], "photos/red.png is a file. Give the folder to search first"),
        (["index", "empty"], "empty holds no pictures. Looked, in its folders too, for .apng, "),
        (["search", "photos", ""], "the query is empty."),
        (["search", "photos"], "the query is empty."),
        (["search", "photos", "dog", "+"], "nothing follows the +"),
        (["search", "photos", "gone.jpg"], "gone.jpg is called like a picture"),
        (["search", "photos", "x", "--html", "no/such/place.html"], "no/such/place.html: No such"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_1(run, folder, arguments, message):
    (folder.parent / "empty").mkdir()
    result = run(*arguments)
    last_line = result.err.splitlines()[-1]
    assert (result.code, result.out) == (1, "") or "--html" in arguments
    assert last_line.startswith(f"twinlens: {message}")
    assert not (folder.parent / "empty" / ".twinlens").exists()


def test_a_wrong_command_line_is_exit_code_2(run, folder):
    assert run("search", "photos", "x", "--topp", "3").code == 2
    assert run("search", "photos", "x", "--top", "0").code == 2
    assert run("index").code == 2
    assert run("nonsense").code == 2


def test_without_a_subcommand_the_help_is_shown(run):
    result = run()
    assert result.code == 0
    assert "index" in result.out and "search" in result.out


def test_ctrl_c_keeps_what_is_indexed_and_says_so(run, folder, monkeypatch):
    run("index", "photos")

    def interrupt(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PhotoIndex, "sync", interrupt)
    result = run("index", "photos")
    assert result.code == 130
    assert result.err == (
        "stopped; 3 photos are indexed and stay so; run the same command to continue\n"
    )


def test_search_uses_what_there_is_while_another_process_indexes(run, folder):
    run("index", "photos")
    (folder / "new.png").write_bytes(b"new")
    with Index.open(folder) as other, other.writing():
        result = run("search", "photos", "x", "--json")
        busy = run("index", "photos")
    assert result.err == "another twinlens is indexing photos; searching what it has so far\n"
    assert json.loads(result.out)["indexed"] == 3
    assert (busy.code, "Wait for it to end" in busy.err) == (1, True)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(run, folder, monkeypatch):
    texts = FakeEmbedder.texts

    def cut(self, *arguments, **options):
        warnings.warn("the query was cut after 'dog'", embed.TruncatedTextWarning, stacklevel=2)
        return texts(self, *arguments, **options)

    run("index", "photos")
    monkeypatch.setattr(FakeEmbedder, "texts", cut)
    assert run("search", "photos", "x").err == "twinlens: the query was cut after 'dog'\n"


def test_hostile_and_undecodable_names_cannot_steer_the_terminal(run, folder):
    (folder / "\x1b[2J\n.png").write_bytes(b"escape")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"latin")
    out = run("search", "photos", "x").out
    assert "photos/\\x1b[2J\\n.png" in out
    assert "photos/caf\\udce9.png" in out
    paths = {
        hit["path"] for hit in json.loads(run("search", "photos", "x", "--json").out)["results"]
    }
    assert all(os.path.exists(path) for path in paths)


def test_the_contact_sheet_is_one_safe_file(run, folder):
    (folder / "<script>alert(1).png").write_bytes(b"cannot be decoded")
    result = run("search", "photos", "<b>", "+", "photos/red.png", "--html", "out.html")
    assert result.err.endswith("wrote out.html\n")
    page = (folder.parent / "out.html").read_text(encoding="utf-8")
    assert "<title>&lt;b&gt; + photos/red.png</title>" in page
    assert "<script" not in page
    assert page.count("<figure>") == 4
    assert page.count("data:image/jpeg;base64,") == 3 + 1  # and the query's own picture
    assert "cannot be shown" in page
    assert f'href="{(folder / "red.png").as_uri()}"' in page
    assert "http:" not in page and "https:" not in page


def test_open_shows_the_sheet_or_else_the_best_photo(run, folder, monkeypatch):
    opened = []
    monkeypatch.setattr(search_command, "_open_with_viewer", opened.append)
    run("search", "photos", "photos/red.png", "--open")
    run("search", "photos", "photos/red.png", "--open", "--html", "out.html")
    assert [str(path) for path in opened] == ["photos/red.png", "out.html"]


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, None),
    ],
)
def test_a_terminal_is_sent_pictures_only_if_it_says_that_it_shows_them(environment, protocol):
    assert thumbnails.terminal_protocol(environment) == protocol


def test_thumbnails_go_to_a_terminal_only(run, folder):
    assert "\x1b" not in run("search", "photos", "x", "--thumbnails").out


def test_a_thumbnail_fits_its_cells_whatever_its_shape(tmp_path):
    pixels = np.zeros((300, 600, 3), dtype=np.uint8)
    pixels[:150] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "half.png")
    Image.new("RGB", (4000, 10)).save(tmp_path / "wide.png")
    lines = thumbnails.terminal_thumbnail(tmp_path / "half.png", "blocks").split("\n")
    assert (len(lines), lines[0].count("▀")) == (8, 32)
    assert "\x1b[38;2;255;0;0;48;2;255;0;0m▀" in lines[0]
    assert "\x1b[38;2;0;0;0;48;2;0;0;0m▀" in lines[-1]
    kitty = thumbnails.terminal_thumbnail(tmp_path / "wide.png", "kitty")
    assert kitty.startswith("\x1b_Gf=100,a=T,q=2,c=32,r=1,m=0;")
    iterm = thumbnails.terminal_thumbnail(tmp_path / "half.png", "iterm")
    assert iterm.startswith("\x1b]1337;File=inline=1;width=32;height=8;")


def test_printable_leaves_ordinary_names_alone():
    assert printable("Übermut 写真 🎉.jpg") == "Übermut 写真 🎉.jpg"
    assert printable("a\tb\x9b\udcff") == "a\\tb\\x9b\\udcff"


def test_the_same_in_three_lines_of_python(folder):
    photos = index(folder)
    (best, *_) = photos.search(folder / "red.png")
    assert best.path == folder / "red.png"
    assert best.score == pytest.approx(1.0)
    assert photos.report.added == len(photos) == 3
    assert len(photos.search("a dog", top=2)) == 2
    assert photos.search(["a dog", "+", "snow"]) == photos.search(["a dog", "+", "1:snow"])


def test_the_command_starts_without_what_it_does_not_need():
    """`twinlens --help` has no use for arrays, pictures or a runtime."""
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from twinlens.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'PIL', 'onnxruntime', 'rich', 'torch', 'sqlite3'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or None)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
