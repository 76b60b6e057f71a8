"""Learning a teacher's embeddings: the distance, the layer across widths, and where it is kept."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from train_means_run import TEACHER_DIM, write_teacher
from train_processes import MEANS_PROGRAM, finish, start, start_together
from train_run import losses, open_memory, pairs_in_memory, tiny_config, write_tiny
from twinlens.errors import ConfigError
from twinlens.model.checkpoint import load_checkpoint
from twinlens.train.config import OptimizerConfig, TrainConfig
from twinlens.train.loop import train
from twinlens.train.teachers import Follower

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("student") / "tiny")


@pytest.fixture(scope="module")
def wider(tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("wider") / "teacher")


def first_loss(folder, config):
    train(config, folder, open_inputs=open_memory)
    return losses(folder)[0]


def embeddings(folder):
    clip = load_checkpoint(folder).eval()
    pixels, ids = pairs_in_memory()
    with torch.no_grad():
        return normalize(clip.encode_image(pixels)).numpy(), normalize(
            clip.encode_text(ids)
        ).numpy()


@pytest.mark.parametrize("kind", ["mse", "cosine"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_distance_is_added_to_the_loss_with_its_weight(model, tmp_path, kind, accumulate):
    # All 32 pairs are in the first batch, so the distance is that of the two models as they are.
    teacher = write_teacher(tmp_path / "teacher", dim=8)
    settings = {"batch": 32, "steps": 1, "accumulate": accumulate}
    plain = first_loss(tmp_path / "plain", tiny_config(model, **settings))
    taught = tiny_config(
        model,
        **settings,
        teachers=(str(teacher),),
        teacher_weight=0.0,
        feature_weight=0.5,
        feature_kind=kind,
    )
    sides = zip(embeddings(model), embeddings(teacher), strict=True)
    distance = sum(((ours - theirs) ** 2).sum(axis=1).mean() for ours, theirs in sides)
    if kind == "cosine":
        distance /= 2  # |a - b|^2 = 2 - 2 cos for unit vectors
    assert distance > 0.3
    found = first_loss(tmp_path / "taught", taught)
    assert found == pytest.approx(plain + 0.5 * distance, rel=1e-5)


def test_a_teacher_that_is_the_student_adds_nothing(model, tmp_path):
    plain = first_loss(tmp_path / "plain", tiny_config(model, steps=1))
    teachers = {"teachers": (str(model),), "teacher_weight": 0.0, "feature_weight": 3.0}
    taught = first_loss(tmp_path / "taught", tiny_config(model, steps=1, **teachers))
    assert taught == pytest.approx(plain, abs=1e-5)


def test_two_teachers_of_any_width_are_asked_for_their_mean():
    follower = Follower(2, [2, 3])
    assert [tuple(p.shape) for p in follower.parameters()] == [(3, 2), (3, 2)]  # image, text
    follower.image[1].weight.data = torch.tensor([[0.0, 2.0], [0.0, 0.0], [2.0, 0.0]])
    image, _ = follower(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))
    # Its own space as it is, then the other: (1.6, 0, 1.2) brought to length 1.
    torch.testing.assert_close(image, torch.tensor([[0.6, 0.8, 0.8, 0.0, 0.6]]))


def test_the_layer_between_widths_learns_and_is_no_part_of_the_model(model, wider, tmp_path):
    config = tiny_config(
        model,
        teachers=(str(wider),),
        teacher_weight=0.0,
        feature_weight=20.0,
        epochs=20.0,
        ema_decay=0.9,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup=2.0),
    )
    train(config, tmp_path / "run", open_inputs=open_memory)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0] / 2
    saved = tmp_path / "run/checkpoints/step_00000080"
    layers = load_file(saved / "follower.safetensors")
    assert {n: tuple(t.shape) for n, t in layers.items()} == {
        "follower.image.0.weight": (TEACHER_DIM, 8),
        "follower.text.0.weight": (TEACHER_DIM, 8),
    }
    assert "follower.image.0.weight/exp_avg" in load_file(saved / "optimizer.safetensors")
    used = load_checkpoint(tmp_path / "run/last").state_dict()
    assert used.keys() == load_checkpoint(model).state_dict().keys()


@pytest.mark.parametrize("means", [{}, {"accumulate": 2, "ema_decay": 0.9, "precision": "bf16"}])
def test_stopping_changes_no_digit_where_a_layer_learns_along(model, wider, tmp_path, means):
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 7:
            raise Stop

    config = tiny_config(model, teachers=(str(wider),), feature_weight=2.0, **means)
    train(config, tmp_path / "whole", open_inputs=open_memory)
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", open_inputs=open_memory, progress=stop)
    train(config, tmp_path / "parts", open_inputs=open_memory)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    name = "checkpoints/step_00000012/follower.safetensors"
    ours, theirs = load_file(tmp_path / "parts" / name), load_file(tmp_path / "whole" / name)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


@pytest.mark.parametrize("distribute", ["ddp", "fsdp"])
def test_two_processes_follow_a_wider_teacher_as_one_does(model, wider, tmp_path, distribute):
    one, two = tmp_path / "one", tmp_path / "two"
    settings = {
        "teachers": [str(wider)],
        "feature_weight": 2.0,
        "accumulate": 2,
        "program": MEANS_PROGRAM,
    }
    first = start(one, model, **settings)
    together = start_together(2, two, model, distribute=distribute, **settings)
    finish(first, *together)
    np.testing.assert_allclose(losses(two), losses(one), rtol=2e-4)
    name = "checkpoints/step_00000012/follower.safetensors"
    ours, theirs = load_file(two / name), load_file(one / name)
    for layer, value in theirs.items():
        torch.testing.assert_close(ours[layer], value, rtol=0, atol=2e-3)


def test_a_weight_without_a_teacher_is_refused():
    with pytest.raises(ConfigError, match="feature_weight is for teachers' embeddings, but there"):
        TrainConfig(model="tiny", feature_weight=1.0)
    with pytest.raises(ConfigError, match=r"feature_weight must not be negative: -1"):
        TrainConfig(model="tiny", feature_weight=-1.0, teachers=("x",))
    config = TrainConfig(model="tiny", teachers=("x",), feature_weight=1.0, feature_kind="cosine")
    assert TrainConfig.from_dict(config.to_dict()) == config
