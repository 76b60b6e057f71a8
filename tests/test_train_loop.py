"""A run from its first step to its folder: it learns, stops, goes on, and says what went wrong."""

import json

import numpy as np
import pytest
import torch

from train_run import losses, open_memory, tiny_config, write_tiny
from twinlens.errors import ConfigError, TrainingStopped
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.model.checkpoint import load_checkpoint
from twinlens.train.config import LoraConfig, OptimizerConfig
from twinlens.train.inputs import Inputs
from twinlens.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path):
    return write_tiny(tmp_path / "tiny")


def test_thirty_two_pairs_are_learned_by_heart(model, tmp_path):
    config = tiny_config(
        model, epochs=60.0, batch=32, optimizer=OptimizerConfig(learning_rate=5e-3, warmup=5.0)
    )
    result = train(config, tmp_path / "run", open_inputs=open_memory, score=retrieval_scores)
    curve = losses(tmp_path / "run")
    # Similarities of a random model are all alike: ln(32) and a little.
    assert curve[0] > 3.0 and curve[-1] < 0.3
    assert result.validation["text_to_image_recall@1"] > 0.9


def test_a_run_folder_says_all_about_the_run(model, tmp_path):
    run = tmp_path / "run"
    result = train(tiny_config(model), run, open_inputs=open_memory, score=retrieval_scores)
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "environment.json", "log.jsonl", "README.md", "plots", "start"} <= names
    assert (run / "plots" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((run / "environment.json").read_text())["packages"]["torch"]
    assert "recall@1" in (run / "README.md").read_text()
    assert result.steps == 12 and result.best_step in (6, 12)
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert {"learning_rate", "gradient_norm", "logit_scale", "data_wait", "validation"} <= set(last)


def test_only_the_last_checkpoints_and_the_best_one_are_kept(model, tmp_path):
    run = tmp_path / "run"
    result = train(tiny_config(model, keep=1), run, open_inputs=open_memory)
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == sorted({f"step_{result.best_step:08}", "step_00000012"})
    assert (run / "last").resolve() == (run / "checkpoints/step_00000012/model").resolve()


def test_a_finished_run_is_not_trained_again(model, tmp_path):
    run = tmp_path / "run"
    first = train(tiny_config(model), run, open_inputs=open_memory)
    before = losses(run)
    again = train(tiny_config(model), run, open_inputs=open_memory)
    assert again.best_step == first.best_step and again.loss is None
    assert losses(run) == before


@pytest.mark.parametrize(
    "means",
    [
        {"ema_decay": 0.9},
        {"accumulate": 4},
        {"lora": LoraConfig(rank=2)},
        {"patch_dropout": 0.5, "recompute": True},
        {"precision": "bf16"},
        {"unlocked_image_layers": 0, "unlocked_text_layers": 1},
        {"matryoshka": (4,)},
        {"loss": "sigmoid"},
        {"optimizer": OptimizerConfig(schedule="constant", cooldown=0.2, layer_decay=0.8)},
    ],
    ids=lambda means: next(iter(means)),
)
def test_stopping_changes_no_digit_of_the_losses(model, tmp_path, means):
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 7:  # one after a checkpoint
            raise Stop

    config = tiny_config(model, **means)
    train(config, tmp_path / "whole", open_inputs=open_memory)
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", open_inputs=open_memory, progress=stop)
    train(config, tmp_path / "parts", open_inputs=open_memory)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    for name, value in load_checkpoint(tmp_path / "whole/last").state_dict().items():
        other = load_checkpoint(tmp_path / "parts/last").state_dict()[name]
        assert torch.equal(value, other), name


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_used(model, tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 5:
            raise Stop

    config = tiny_config(model)
    train(config, tmp_path / "whole", open_inputs=open_memory)
    with pytest.raises(Stop):
        train(config, tmp_path / "run", open_inputs=open_memory, progress=stop)
    broken = tmp_path / "run/checkpoints/step_00000004/optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    said = []
    train(config, tmp_path / "run", open_inputs=open_memory, say=said.append)
    assert "step_00000004 is damaged and is passed over: optimizer.safetensors has" in said[0]
    assert "continuing after step 2 of 12" in said[1]
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_a_loss_that_is_no_number_names_the_step_and_the_last_good_checkpoint(model, tmp_path):
    def broken_data(*arguments):
        inputs = open_memory(*arguments)
        inputs.train.pixels[:] = 0

        class Breaking:
            def __iter__(self):
                for number, batch in enumerate(inputs.train):
                    if number == 4:
                        batch.pixel_values[:] = np.nan
                    yield batch

            state_dict = inputs.train.state_dict
            load_state_dict = inputs.train.load_state_dict

        return Inputs(train=Breaking(), pairs_per_epoch=32)

    sentence = r"no number in step 5; .*step_00000004.*lower --lr"
    with pytest.raises(TrainingStopped, match=sentence) as stopped:
        train(tiny_config(model), tmp_path / "run", open_inputs=broken_data)
    assert stopped.value.step == 5 and stopped.value.signal is None


def test_other_settings_do_not_continue_a_run(model, tmp_path):
    train(tiny_config(model, steps=2), tmp_path / "run", open_inputs=open_memory)
    with pytest.raises(ConfigError, match=r"other settings \(batch 8 -> 16\)"):
        train(tiny_config(model, steps=2, batch=16), tmp_path / "run", open_inputs=open_memory)
    with pytest.raises(ConfigError, match="holds a run already"):
        train(tiny_config(model, steps=2), tmp_path / "run", open_inputs=open_memory, resume=False)


def test_two_processes_cannot_train_in_one_folder(model, tmp_path):
    def second(record):
        with pytest.raises(ConfigError, match="Another process is training"):
            train(tiny_config(model), tmp_path / "run", open_inputs=open_memory)

    train(tiny_config(model, steps=1), tmp_path / "run", open_inputs=open_memory, progress=second)


def test_fewer_pairs_than_a_batch_are_refused(model, tmp_path):
    with pytest.raises(ConfigError, match=r"There are 32 pairs, less than one batch of 64"):
        train(tiny_config(model, batch=64), tmp_path / "run", open_inputs=open_memory)


def test_the_saved_weights_are_the_average_and_are_validated(model, tmp_path):
    run = tmp_path / "run"
    train(tiny_config(model, ema_decay=0.99), run, open_inputs=open_memory)
    from safetensors.torch import load_file

    saved = run / "checkpoints/step_00000012"
    live, average = load_file(saved / "live.safetensors"), load_file(saved / "average.safetensors")
    used = load_checkpoint(run / "last").state_dict()
    name = "image_tower.patch.weight"
    assert torch.equal(used[name], average[name]) and not torch.equal(live[name], average[name])


def test_a_teacher_is_followed(model, tmp_path):
    # A teacher that is the student from the start has nothing to teach: the loss is the plain one.
    plain = tiny_config(model, steps=1)
    train(plain, tmp_path / "plain", open_inputs=open_memory)
    for parts in (1, 4):
        taught = tiny_config(model, steps=1, teachers=(str(model),), accumulate=parts)
        train(taught, tmp_path / f"taught{parts}", open_inputs=open_memory)
        assert losses(tmp_path / f"taught{parts}")[0] >= losses(tmp_path / "plain")[0] - 1e-6
