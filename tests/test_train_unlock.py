"""Layers that are unlocked over time: when, from which moments on, and across stops and ranks."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from train_processes import MEANS_PROGRAM, finish, start, start_together
from train_run import losses, open_memory, tiny_clip, tiny_config, write_tiny
from twinlens.config import ClipConfig, ClipTextConfig, ResNetConfig
from twinlens.errors import ConfigError
from twinlens.model.checkpoint import load_checkpoint
from twinlens.model.clip import Clip
from twinlens.train.config import TrainConfig
from twinlens.train.lock import lock_towers, training_mode, unlock_steps, unlock_towers
from twinlens.train.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("start") / "tiny")


def learns(clip, side):
    """The layers of a tower that learn, in words: stem, 0 and 1 of tiny_clip."""
    names = [n for n, p in getattr(clip, f"{side}_tower").named_parameters() if p.requires_grad]
    return {n.split(".")[1] if n.startswith("blocks") else n.split(".")[0] for n in names}


def test_a_layer_more_learns_at_each_interval_until_all_do():
    clip = tiny_clip()
    config = TrainConfig(
        model="tiny", unlocked_image_layers=0, unlocked_text_layers=1, unlock_every=3.0
    )
    lock_towers(clip, config)
    seen = {}
    for step in range(12):
        changed = unlock_towers(clip, config, step, 12)
        assert changed == (step in (3, 6, 9))  # the image tower's third and last layer at 9
        seen[step] = learns(clip, "image"), learns(clip, "text")
    last = {"1", "final_norm"}
    assert seen[2] == (set(), last)
    assert seen[3] == seen[5] == (last, last | {"0"})
    assert seen[6][0] == last | {"0"}
    assert all(p.requires_grad for p in clip.parameters())
    again = tiny_clip()
    lock_towers(again, config)
    unlock_towers(again, config, 7, 12)  # a run that goes on there
    assert (learns(again, "image"), learns(again, "text")) == seen[7]


def test_an_interval_is_a_share_of_all_steps_below_one_and_else_a_number():
    assert unlock_steps(0.25, 40) == 10
    assert unlock_steps(5.0, 40) == 5
    assert unlock_steps(0.001, 40) == 1


def test_a_tower_that_is_not_locked_stays_as_it_is():
    clip = tiny_clip()
    config = TrainConfig(model="tiny", unlocked_image_layers=0, unlock_every=1.0)
    lock_towers(clip, config)
    assert len(learns(clip, "text")) > 3 and not learns(clip, "image")


def test_a_batch_norm_takes_up_its_statistics_when_it_is_unlocked():
    sizes = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}
    clip = Clip(
        ClipConfig(
            image=ResNetConfig(image_size=32, stem_width=8, layers=(1, 1, 1, 1), heads=4),
            text=ClipTextConfig(**sizes, vocab_size=300, context=8),
            dim=8,
            image_projection="linear",
        )
    )
    config = TrainConfig(model="tiny", unlocked_image_layers=0, unlock_every=1.0)
    lock_towers(clip, config)
    unlock_towers(clip, config, 1, 5)
    training_mode(clip)
    before = {n: b.clone() for n, b in clip.named_buffers()}
    clip.encode_image(torch.randn(4, 3, 32, 32))
    moved = {n.split(".")[2] for n, b in clip.named_buffers() if not torch.equal(before[n], b)}
    assert moved == {"3"}  # the last stage


def test_locked_weights_stay_and_their_moments_begin_with_them(model, tmp_path):
    run = tmp_path / "run"
    config = tiny_config(
        model,
        unlocked_image_layers=0,
        unlocked_text_layers=1,
        unlock_every=4.0,
        save_every=1,
        keep=100,
        ema_decay=0.5,
    )
    train(config, run, open_inputs=open_memory)
    first = load_checkpoint(model).state_dict()
    # Unlocked from the 5th step on, from the 9th on, and never in 12 steps.
    since = {
        "image_tower.blocks.1.mlp.0.weight": 4,
        "image_tower.blocks.0.mlp.0.weight": 8,
        "image_tower.patch.weight": 12,
        "text_tower.blocks.1.mlp.0.weight": 0,
        "text_tower.blocks.0.mlp.0.weight": 4,
        "text_tower.token.weight": 8,
    }
    for step in range(1, 13):
        saved = run / f"checkpoints/step_{step:08}"
        used = load_checkpoint(saved / "model").state_dict()
        moments = load_file(saved / "optimizer.safetensors")
        for name, start_at in since.items():
            steps = max(0, step - start_at)
            assert torch.equal(used[name], first[name]) == (steps == 0), (name, step)
            counted = moments[f"{name}/step"].item() if f"{name}/step" in moments else 0
            assert counted == steps, (name, step)


@pytest.mark.parametrize("means", [{}, {"accumulate": 2, "ema_decay": 0.9}])
@pytest.mark.parametrize("stop_at", [5, 7])  # checkpoints 4 and 6: before an unlock, and after
def test_stopping_between_unlocks_changes_no_digit(model, tmp_path, means, stop_at):
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == stop_at:
            raise Stop

    config = tiny_config(
        model, unlocked_image_layers=0, unlocked_text_layers=1, unlock_every=5.0, **means
    )
    train(config, tmp_path / "whole", open_inputs=open_memory)
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", open_inputs=open_memory, progress=stop)
    train(config, tmp_path / "parts", open_inputs=open_memory)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    ours, theirs = (load_checkpoint(tmp_path / r / "last").state_dict() for r in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_unlock_together_and_go_on_exactly(model, tmp_path):
    settings = {
        "unlocked_image_layers": 0,
        "unlocked_text_layers": 1,
        "unlock_every": 0.25,
        "program": MEANS_PROGRAM,
    }
    first = start(tmp_path / "one", model, **settings)
    finish(first, *start_together(2, tmp_path / "two", model, **settings))
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)
    ours, theirs = (load_checkpoint(tmp_path / r / "last").state_dict() for r in ("two", "one"))
    for name, value in theirs.items():  # apart where a process keeps its own gradient
        torch.testing.assert_close(ours[name], value, rtol=0, atol=2e-3, msg=name)
    run = tmp_path / "killed"
    killed = start_together(2, run, model, **settings, kill_after=7)  # goes on after step 6
    killed[0].communicate(timeout=240)
    killed[1].kill()
    killed[1].communicate()
    finish(*start_together(2, run, model, **settings))
    np.testing.assert_allclose(losses(run), losses(tmp_path / "two"), rtol=1e-6)


@pytest.mark.parametrize(
    ("means", "sentence"),
    [
        ({}, "unlock_every needs a locked tower"),
        ({"unlocked_text_layers": 1, "unlock_every": 0.0}, "must be above 0, not 0.0"),
        ({"unlocked_text_layers": 1, "distribute": "fsdp"}, "fsdp cannot unlock weights"),
    ],
)
def test_what_cannot_be_unlocked_is_one_sentence(means, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TrainConfig(**{"model": "tiny", "unlock_every": 2.0, **means})


def test_more_layers_than_there_are_is_still_said_before_anything_is_trained(model, tmp_path):
    config = tiny_config(model, unlocked_image_layers=9, unlock_every=2.0)
    with pytest.raises(ConfigError, match="has 3 layers to unlock, not 9"):
        train(config, tmp_path / "run", open_inputs=open_memory)
    assert TrainConfig.from_dict(config.to_dict()) == config
