"""`twinlens train` as people type it: pictures in a folder, a real loader, a model to use."""

import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from train_processes import SOURCES
from train_run import losses
from twinlens.cli.main import main
from twinlens.embed import Embedder
from twinlens.train.config import TrainConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "grey": (120,) * 3}


@pytest.fixture
def pictures(tmp_path):
    """Sixteen plain pictures with what they show in captions.csv."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(16):
            name = list(COLOURS)[number % 4]
            pixels = np.array(COLOURS[name]) + random.integers(-20, 20, (24, 24, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", f"a {name} square, number {number}"])
    return folder


def run_cli(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_of:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(exit_of.value.code or 0), captured.out, captured.err


def test_a_folder_with_captions_becomes_a_model_that_can_be_used(
    pictures, own_folder, tmp_path, capsys
):
    run = tmp_path / "run"
    arguments = ["train", "--images", pictures, "--model", own_folder, "--run", run, "--val"]
    arguments += [pictures, "--batch", 8, "--epochs", 2, "--lr", 1e-3, "--accumulate", 2, "--json"]
    code, out, err = run_cli(capsys, *arguments)
    assert code == 0, err
    result = json.loads(out)
    assert result["steps"] == 4 and 0 <= result["validation"]["text_to_image_recall@1"] <= 1
    assert "step 4/4" in err and "pairs/s" in err and "val t2i@1" in err
    vectors = Embedder(run / "best").images([pictures / "0.png"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-4)
    code, out, err = run_cli(capsys, "convert", run / "best", tmp_path / "converted")
    assert code == 0 and (tmp_path / "converted" / "model.json").is_file(), err
    code, out, _ = run_cli(capsys, *arguments[:-1])
    assert code == 0 and "4 steps, was finished already" in out


def test_a_configuration_file_and_options_on_top_of_it(pictures, own_folder, tmp_path, capsys):
    path = tmp_path / "config.json"
    settings = {
        "model": str(own_folder),
        "data": [{"kind": "folder", "path": str(pictures)}],
        "batch": 8,
        "steps": 5,
        "optimizer": {"learning_rate": 1e-3, "warmup": 1},
    }
    path.write_text(json.dumps(settings))
    code, _, err = run_cli(capsys, "train", path, "--run", tmp_path / "run", "--steps", 2)
    assert code == 0, err
    written = TrainConfig.read(tmp_path / "run" / "config.json")
    assert written.steps == 2 and written.batch == 8
    assert written.optimizer.learning_rate == 1e-3 and len(losses(tmp_path / "run")) == 2


def test_lora_saves_its_adapters_apart_and_they_are_small(pictures, own_folder, tmp_path, capsys):
    run = tmp_path / "run"
    code, _, err = run_cli(
        capsys, "train", "--images", pictures, "--model", own_folder, "--run", run,
        "--batch", 8, "--steps", 2, "--lora", 2,
    )  # fmt: skip
    assert code == 0, err
    assert TrainConfig.read(run / "config.json").optimizer.learning_rate == 2e-4
    adapter = run / "checkpoints/step_00000002/adapter.safetensors"
    assert adapter.stat().st_size < 10_000 < (run / "best/weights.safetensors").stat().st_size


def test_teachers_hard_negatives_and_unlocking_are_options(pictures, own_folder, tmp_path, capsys):
    run = tmp_path / "run"
    code, _, err = run_cli(
        capsys, "train", "--images", pictures, "--model", own_folder, "--run", run,
        "--batch", 8, "--steps", 4, "--teacher", own_folder, "--feature-weight", 2,
        "--hardness", 0.5, "--negative-captions", "swap", "--lock-image", 1, "--unlock-every", 0.5,
    )  # fmt: skip
    assert code == 0, err
    written = TrainConfig.read(run / "config.json")
    assert (written.feature_weight, written.hardness) == (2.0, 0.5)
    assert (written.negative_captions, written.unlock_every) == ("swap", 0.5)
    assert written.unlocked_image_layers == 1 and len(losses(run)) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "There is nothing to learn from: give --images FOLDER"),
        (["--images", "nowhere"], "nowhere"),
        (["--images", "PICTURES", "--model", "no-such-model"], "'no-such-model' is neither"),
        (["--images", "PICTURES", "--batch", "64"], "16 pairs, less than one batch of 64"),
        (["--images", "PICTURES", "--batch", "8", "--accumulate", "3"], "in 3 equal parts"),
        (["--images", "PICTURES", "--batch", "8", "--lock-image", "40"], "layers to unlock"),
        (["--images", "PICTURES", "--val", "nowhere.txt"], "nowhere.txt is not there"),
        (["--images", "PICTURES", "--unlock-every", "5"], "unlock_every needs a locked tower"),
        (["--images", "PICTURES", "--feature-weight", "1"], "but there are no teachers"),
        (["--images", "PICTURES", "--loss", "sigmoid", "--hardness", "1"], "contrastive loss"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_is_one_sentence(arguments, sentence, pictures, own_folder, tmp_path, capsys):
    arguments = [str(pictures) if a == "PICTURES" else a for a in arguments]
    if "--model" not in arguments:
        arguments += ["--model", str(own_folder)]
    code, out, err = run_cli(capsys, "train", "--run", tmp_path / "run", *arguments)
    assert code == 1 and out == "" and sentence in err
    assert len(err.strip().splitlines()) == 1
    # What was wrong leaves nothing that would be in the way of the corrected command.
    good = ["--images", pictures, "--model", own_folder, "--batch", 8, "--steps", 1]
    code, _, err = run_cli(capsys, "train", "--run", tmp_path / "run", *good)
    assert code == 0, err


def test_torchrun_gives_the_curve_of_one_process(pictures, own_folder, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(SOURCES)
    settings = ["train", "--images", pictures, "--model", own_folder, "--device", "cpu"]
    settings += ["--batch", "8", "--epochs", "2", "--lr", "1e-3"]
    commands = {
        "one": [sys.executable, "-m", "twinlens"],
        "two": [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "twinlens"),
        ],
    }
    for name, command in commands.items():
        subprocess.run(
            [*command, *map(str, settings), "--run-folder", str(tmp_path / name)],
            check=True,
            env=environment,
            capture_output=True,
            timeout=240,
        )
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-4)


def test_an_epoch_of_all_captions_is_counted_where_a_table_says_them(
    pictures, own_folder, tmp_path, capsys
):
    with (pictures / "captions.csv").open("a", newline="") as file:
        table = csv.writer(file)
        for number in range(8):  # a second caption for half of the sixteen
            table.writerow([f"{number}.png", f"a plain picture, {number}"])
    settings = {
        "model": str(own_folder),
        "data": [{"kind": "folder", "path": str(pictures)}],
        "captions": "all",
        "batch": 8,
        "epochs": 2,
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(settings))
    code, out, err = run_cli(capsys, "train", path, "--run", tmp_path / "run", "--json")
    assert code == 0, err
    assert json.loads(out)["steps"] == 2 * 24 // 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_in_one_sentence_how_to_go_on(
    pictures, own_folder, tmp_path, number, code
):
    arguments = ["train", "--images", pictures, "--model", own_folder, "--run", tmp_path / "run"]
    arguments += ["--batch", "8", "--steps", "1000000", "--save-every", "1000000"]
    arguments += ["--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "twinlens", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "step 1/1,000,000" in process.stderr.readline()
    process.send_signal(number)
    out, errors = process.communicate(timeout=240)
    sentence = errors.strip().splitlines()[-1]
    assert process.returncode == code and out == "" and "Traceback" not in errors
    (checkpoint,) = (tmp_path / "run/checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step_"))
    assert sentence.startswith(f"twinlens: Stopped after step {step:,}, as {number.name} asked")
    assert f"the same command continues after step {step:,} of 1,000,000" in sentence
