"""Batches are the stream's samples in its order, whatever the workers, the kills and the ranks."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pair_data import number_of_key, picture, write_shards, write_tar
from twinlens.data.augment import Augment
from twinlens.data.pairs import ShardSource
from twinlens.data.preprocess import Preprocess
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import TokenizerConfig, open_tokenizer
from twinlens.errors import ConfigError
from twinlens.train import loader as loader_module
from twinlens.train.loader import BatchLoader

PREPROCESS = Preprocess(image_size=16, resize="shortest", mean=(0.0,) * 3, std=(1.0,) * 3)
STRONG = Augment(crop_scale=(0.3, 1.0), flip=0.5, brightness=0.4, saturation=0.4, grey=0.2)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(TokenizerConfig(kind="clip_bpe", context=12), Path())


@pytest.fixture
def source(tmp_path):
    write_shards(tmp_path / "shards", [7, 9, 4], captions=3)
    return ShardSource(shards=(f"{tmp_path}/shards/*.tar",))


@pytest.fixture
def make(source, tokenizer):
    def make(sources=None, *, augment=STRONG, batch_size=4, workers=2, stream=None, **options):
        stream = PairStream(
            sources or [source], **{"seed": 1, "shuffle_buffer": 8, **(stream or {})}
        )
        return BatchLoader(stream, PREPROCESS, tokenizer, augment, batch_size, workers, **options)

    return make


def taken(loader, count):
    batches = iter(loader)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found


def same(left, right):
    return len(left) == len(right) and all(
        a.keys == b.keys
        and torch.equal(a.pixel_values, b.pixel_values)
        and torch.equal(a.token_ids, b.token_ids)
        for a, b in zip(left, right, strict=True)
    )


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("twinlens")]


def test_a_row_is_its_picture_with_its_caption(make, tokenizer):
    (batch, *_) = list(make(augment=None, stream={"shuffle_buffer": 0}))
    assert batch.keys == ("0000/000000", "0000/000001", "0000/000002", "0000/000003")
    assert batch.pixel_values.shape == (4, 3, 16, 16)
    # The pictures' red is their number.
    assert (batch.pixel_values[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3]
    texts = [f"picture {n} caption 0" for n in range(4)]
    assert np.array_equal(batch.token_ids.numpy(), tokenizer(texts))
    assert batch.groups is None and batch.positives is None


@pytest.mark.parametrize("captions", ["one", "all"])
def test_the_number_of_workers_changes_nothing(make, captions):
    first, *others = [
        taken(make(workers=workers, captions=captions, repeat=True), 15) for workers in (1, 2, 5)
    ]
    assert all(same(first, other) for other in others)


@pytest.mark.parametrize("captions", ["one", "all"])
def test_a_saved_position_continues_with_the_next_row(make, captions):
    options = {"captions": captions, "repeat": True}
    whole = taken(make(**options), 18)
    for stop in range(1, 18):
        loader = make(**options)
        before = taken(loader, stop)
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = make(**options)
        resumed.load_state_dict(state)
        assert same(before + taken(resumed, 18 - stop), whole), stop


def test_what_was_prepared_ahead_is_not_lost_when_an_iteration_is_given_up(make):
    loader = make(repeat=True)
    whole = taken(make(repeat=True), 9)
    assert same(taken(loader, 4) + taken(loader, 5), whole)


def test_no_thread_outlives_an_iteration(make):
    taken(make(repeat=True), 2)
    list(make())
    assert threads() == []


def test_augmented_views_differ_between_epochs_but_not_between_runs(make, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(tmp_path / "noise.png")
    write_tar(
        tmp_path / "noise.tar",
        [("a.png", (tmp_path / "noise.png").read_bytes()), ("a.txt", b"noise")],
    )
    only = [ShardSource(shards=(f"{tmp_path}/noise.tar",))]
    views = taken(make(only, batch_size=1, repeat=True), 6)
    again = taken(make(only, batch_size=1, repeat=True), 6)
    assert same(views, again)
    assert len({view.pixel_values.numpy().tobytes() for view in views}) == 6


def test_an_epoch_drops_what_does_not_fill_a_batch_unless_told_to_keep_it(make):
    batches = list(make(batch_size=6))
    assert [len(batch) for batch in batches] == [6, 6, 6]
    assert [len(batch) for batch in make(batch_size=6, keep_last=True)] == [6, 6, 6, 2]
    keys = [key for batch in make(batch_size=6, keep_last=True) for key in batch.keys]
    assert sorted(map(number_of_key, keys)) == list(range(20))


def test_iterating_again_gives_the_next_epoch(make):
    loader = make(batch_size=20)
    (first,), (second,) = list(loader), list(loader)
    assert sorted(first.keys) == sorted(second.keys) and first.keys != second.keys


def test_repeated_batches_reach_over_the_ends_of_epochs(make):
    batches = taken(make(batch_size=6, repeat=True), 10)
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys[:20]) == sorted(keys[20:40]) == sorted(keys[40:60])


def test_all_captions_of_a_picture_are_rows_of_one_group(make):
    (batch,) = list(make(batch_size=60, captions="all", groups="image"))
    assert len(set(batch.keys)) == 20 and batch.groups.dtype == torch.int64
    expected = torch.tensor([[a == b for b in batch.keys] for a in batch.keys])
    assert torch.equal(batch.positives, expected)
    assert batch.positives.sum() == 20 * 3 * 3
    assert len(batch.token_ids.unique(dim=0)) == 60


def test_pictures_of_one_label_are_one_group_the_same_in_every_process(make, tmp_path):
    words = [{"label": 3, "name": "cat"}, {"label": 3, "name": "kitten"}, {"name": "house"}]
    write_tar(
        tmp_path / "labels.tar",
        [
            item
            for number, word in enumerate(words)
            for item in (
                (f"{number}.png", picture(number)),
                (f"{number}.json", json.dumps(word).encode()),
            )
        ],
    )
    source = ShardSource(shards=(f"{tmp_path}/labels.tar",))
    options = {"batch_size": 3, "groups": "label", "stream": {"shuffle_buffer": 0}}
    (batch,) = list(make([source], **options))
    assert batch.positives.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    (again,) = list(make([source], **options))
    assert torch.equal(batch.groups, again.groups)


def test_bad_samples_are_counted_by_reason_and_the_rest_is_used(make, tmp_path):
    items = []
    for number in range(12):
        image = picture(number)[: 40 if number % 6 == 0 else None]
        words = b'{"caption": ' if number % 6 == 3 else b'{"caption": "x"}'
        items += [(f"{number:06d}.png", image), (f"{number:06d}.json", words)]
    write_tar(tmp_path / "0000.tar", items)
    source = ShardSource(shards=(f"{tmp_path}/{{0000..0001}}.tar",))
    loader = make([source], batch_size=4, stream={"shuffle_buffer": 0})
    keys = [key for batch in loader for key in batch.keys]
    assert list(map(number_of_key, keys)) == [1, 2, 4, 5, 7, 8, 10, 11]
    assert loader.bad.counts == {
        "unreadable picture": 2,
        "broken JSON": 2,
        "unreachable shard": 1,
    }
    assert "0000/000003" in loader.bad.first["broken JSON"]
    # The counts survive a stop, and what is met again is not counted twice.
    for stop in (1, 2):
        loader = make([source], batch_size=4, stream={"shuffle_buffer": 0})
        taken(loader, stop)
        resumed = make([source], batch_size=4, stream={"shuffle_buffer": 0})
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        list(resumed)
        assert resumed.bad.total == 5, stop


@pytest.mark.parametrize("repeat", [True, False])
def test_a_source_of_nothing_but_bad_samples_is_one_clear_error(make, tmp_path, repeat):
    write_tar(
        tmp_path / "bad.tar", [(f"{n}.png", b"no picture") for n in range(9)] + [("9.txt", b"x")]
    )
    bad = ShardSource(shards=(f"{tmp_path}/bad.tar",))
    with pytest.raises(ConfigError, match=r"Not one sample of .*bad.tar can be used: \d+ were"):
        list(make([bad], repeat=repeat))
    assert threads() == []


def test_a_batch_larger_than_an_epoch_says_so(make):
    with pytest.raises(ConfigError, match="An epoch has 20 usable rows, which do not fill one"):
        list(make(batch_size=21))


def test_two_ranks_see_together_what_one_sees_alone(make):
    alone = [set(batch.keys) for batch in make(batch_size=8)]
    ranks = [list(make(batch_size=4, stream={"rank": r, "world_size": 2})) for r in range(2)]
    together = [{*a.keys, *b.keys} for a, b in zip(*ranks, strict=True)]
    assert together[: len(alone)] == alone
    pixels = {
        key: row
        for batches in ranks
        for batch in batches
        for key, row in zip(batch.keys, batch.pixel_values, strict=True)
    }
    for batch in make(batch_size=8):  # down to the same random crops
        for key, row in zip(batch.keys, batch.pixel_values, strict=True):
            assert torch.equal(pixels[key], row)


def test_little_is_prepared_ahead_of_a_slow_model(make, monkeypatch):
    decoded = []
    real = loader_module.read_pair

    def counting(reference, *rest, **options):
        decoded.append(reference.key)
        return real(reference, *rest, **options)

    monkeypatch.setattr(loader_module, "read_pair", counting)
    batches = iter(make(batch_size=10, repeat=True, workers=2, ahead=1))
    next(batches)
    time.sleep(0.3)
    # The batch that was taken, one waiting, one finished but without room, and those in work.
    assert len(decoded) <= 3 * 10 + 2 * loader_module.SAMPLES_AHEAD + 1
    batches.close()


def test_a_killed_process_continues_with_exactly_the_next_batch(tmp_path):
    write_shards(tmp_path / "shards", [13, 8, 21], captions=3)
    shards = f"{tmp_path}/shards/*.tar"
    program = [sys.executable, str(Path(__file__).parent / "loader_run.py"), shards]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def lines(log):
        return [json.loads(line) for line in log.read_text().splitlines()]

    whole_log = tmp_path / "whole.jsonl"
    subprocess.run([*program, whole_log, tmp_path / "whole.state"], check=True, env=environment)
    whole = lines(whole_log)
    assert len(whole) == 40
    log, state = tmp_path / "log.jsonl", tmp_path / "state.json"
    for kill_after in (4, 17):
        process = subprocess.Popen([*program, log, state], env=environment)
        deadline = time.monotonic() + 60
        while not (log.exists() and len(log.read_text().splitlines()) >= kill_after):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*program, log, state], check=True, env=environment)
    seen = lines(log)
    assert len(seen) > 40  # what came after the last saved state was done again,
    assert all(entry == whole[entry[0] - 1] for entry in seen)  # exactly the same
    assert {entry[0] for entry in seen} == set(range(1, 41))
