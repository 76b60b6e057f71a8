"""One seed, one order; stopping anywhere and going on changes nothing; ranks share exactly."""

import gzip
import json
import os

import pytest

from pair_data import members, number_of_key, picture, write_shards, write_tar
from twinlens.data import parts
from twinlens.data.pairs import FolderSource, ShardSource
from twinlens.data.stream import PairStream
from twinlens.errors import ConfigError


@pytest.fixture
def shards(tmp_path):
    """Five shards of different sizes, 30 samples."""
    write_shards(tmp_path / "shards", [7, 1, 10, 0, 12])
    return ShardSource(shards=(f"{tmp_path}/shards/*.tar",))


@pytest.fixture
def gzipped(tmp_path):
    """The same, gzipped: they must be unpacked before a sample can be taken out."""
    folder = tmp_path / "gzipped"
    for path in write_shards(folder, [7, 1, 10, 0, 12]):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return ShardSource(shards=(f"{folder}/*.tar.gz",))


def numbers(references):
    return [number_of_key(reference.key) for reference in references]


def through_json(state):
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("window", [0, 4, 9, 1000])
def test_an_epoch_is_every_sample_once(shards, window):
    stream = PairStream([shards], seed=3, shuffle_buffer=window)
    first, second = numbers(stream), numbers(stream)
    assert sorted(first) == sorted(second) == list(range(30))
    if window == 0:
        assert first == second == list(range(30))
    else:
        assert first != second and first != list(range(30))
    assert stream.epoch == 2


def test_a_seed_decides_the_order(shards):
    orders = [numbers(PairStream([shards], seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("window", [0, 4, 1000])
@pytest.mark.parametrize("kind", ["shards", "gzipped"])
def test_a_saved_position_goes_on_with_exactly_the_next_sample(kind, window, request):
    source = request.getfixturevalue(kind)
    options = {"seed": 5, "shuffle_buffer": window}
    stream = PairStream([source], **options)
    expected = numbers([*stream, *stream])
    for stop in range(0, 61):
        stream = PairStream([source], **options)
        seen = [next(stream, None) or next(stream) for _ in range(stop)]
        state = through_json(stream.state_dict())
        resumed = PairStream([source], **options)
        resumed.load_state_dict(state)
        rest = []
        while resumed.epoch < 2:
            rest += resumed
        assert numbers([*seen, *rest]) == expected, stop


@pytest.mark.parametrize("kind", ["shards", "gzipped"])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_an_epoch_without_gaps_or_overlaps(kind, world_size, request):
    source = request.getfixturevalue(kind)
    found = []
    for rank in range(world_size):
        found += numbers(
            PairStream([source], seed=1, shuffle_buffer=9, rank=rank, world_size=world_size)
        )
    assert sorted(found) == list(range(30))


def test_ranks_together_see_what_one_rank_alone_sees(shards):
    alone = numbers(PairStream([shards], seed=1, shuffle_buffer=9))
    ranks = [
        numbers(PairStream([shards], seed=1, shuffle_buffer=9, rank=rank, world_size=3))
        for rank in range(3)
    ]
    assert [number for together in zip(*ranks, strict=True) for number in together] == alone


def test_slow_parts_are_dealt_out_so_that_a_rank_fetches_only_its_own(gzipped, monkeypatch):
    fetched = []
    real = parts.spooled
    monkeypatch.setattr(
        parts, "spooled", lambda place, **rest: (fetched.append(place), real(place, **rest))[1]
    )
    list(PairStream([gzipped], rank=0, world_size=2))
    assert len(fetched) == len(set(fetched)) == 3  # of 5


def test_many_ranks_are_dealt_shards_when_there_are_enough(tmp_path):
    write_shards(tmp_path, [3] * 12)
    source = ShardSource(shards=(f"{tmp_path}/*.tar",))
    found = []
    for rank in range(12):
        own = numbers(PairStream([source], seed=1, rank=rank, world_size=12))
        assert len({number // 3 for number in own}) == 1  # of one shard
        found += own
    assert sorted(found) == list(range(36))


def test_fetched_files_go_when_their_samples_are_gone(gzipped):
    stream = PairStream([gzipped], shuffle_buffer=4)
    path = next(stream).image.path
    assert os.path.exists(path)
    list(stream)
    del stream
    assert not os.path.exists(path)


def test_weights_are_shares_of_the_samples_for_every_rank(tmp_path):
    write_shards(tmp_path / "a", [50])
    write_shards(tmp_path / "b", [50])
    sources = [
        ShardSource(shards=(f"{tmp_path}/a/0000.tar",), weight=3.0),
        ShardSource(shards=(f"{tmp_path}/b/0000.tar",), weight=1.0),
    ]
    drawn = [
        r.source
        for rank in range(2)
        for r in PairStream(sources, seed=1, epoch_size=4000, rank=rank, world_size=2)
    ]
    assert len(drawn) == 4000
    # Standard deviation of a count of 4,000 draws at 1/4: 27.
    assert abs(drawn.count(1) - 1000) < 110
    half = [r.source for r in PairStream(sources, seed=1, epoch_size=4000, world_size=2)]
    assert abs(half.count(1) - 500) < 80


def test_positions_are_exact_with_weights_and_several_ranks(tmp_path):
    write_shards(tmp_path / "a", [5, 4])
    write_shards(tmp_path / "b", [3])
    sources = [
        ShardSource(shards=(f"{tmp_path}/a/*.tar",), weight=2.0),
        ShardSource(shards=(f"{tmp_path}/b/*.tar",), weight=1.0),
    ]
    options = {"seed": 2, "shuffle_buffer": 4, "rank": 1, "world_size": 2, "epoch_size": 40}
    stream = PairStream(sources, **options)
    expected = [(r.source, r.key, r.slot) for r in [*stream, *stream]]
    assert len(expected) == 40
    for stop in (1, 7, 19):
        stream = PairStream(sources, **options)
        seen = [next(stream) for _ in range(stop)]
        resumed = PairStream(sources, **options)
        resumed.load_state_dict(through_json(stream.state_dict()))
        rest = [*resumed, *resumed]
        assert [(r.source, r.key, r.slot) for r in [*seen, *rest]] == expected


def test_sources_without_weights_are_all_gone_through_once(tmp_path, shards):
    (tmp_path / "folder").mkdir()
    for number in range(100, 103):
        (tmp_path / "folder" / f"{number}.png").write_bytes(picture(number))
        (tmp_path / "folder" / f"{number}.txt").write_text("x")
    sources = [shards, FolderSource(path=str(tmp_path / "folder"))]
    keys = [r.key for r in PairStream(sources, seed=1)]
    assert len(keys) == len(set(keys)) == 33
    assert PairStream(sources).samples_per_epoch() == 33


def test_weighing_some_sources_only_is_refused(shards):
    other = ShardSource(shards=shards.shards, weight=2.0)
    with pytest.raises(ConfigError, match="has no weight, but another source has"):
        PairStream([shards, other])


def test_the_position_of_another_run_is_refused(shards, tmp_path):
    state = PairStream([shards], seed=1).state_dict()
    with pytest.raises(ConfigError, match="belongs to seed 1, not 2"):
        PairStream([shards], seed=2).load_state_dict(state)
    with pytest.raises(ConfigError, match="belongs to world_size 1, not 2"):
        PairStream([shards], seed=1, world_size=2).load_state_dict(state)
    write_tar(tmp_path / "shards" / "0009.tar", members([99]))
    with pytest.raises(ConfigError, match="belongs to other data"):
        PairStream([shards], seed=1).load_state_dict(state)


def test_data_that_was_moved_is_still_the_same_data(shards, tmp_path):
    stream = PairStream([shards], seed=1)
    next(stream)
    (tmp_path / "shards").rename(tmp_path / "elsewhere")
    moved = PairStream([ShardSource(shards=(f"{tmp_path}/elsewhere/*.tar",))], seed=1)
    moved.load_state_dict(stream.state_dict())
    assert len(list(moved)) == 29


def test_a_missing_shard_is_counted_once_a_pass_and_the_rest_is_used(tmp_path):
    write_shards(tmp_path, [4, 4])
    source = ShardSource(shards=(f"{tmp_path}/{{0000..0002}}.tar",))
    stream = PairStream([source], shuffle_buffer=5)
    assert len(list(stream)) == 8
    assert stream.bad.counts == {"unreachable shard": 1}
    assert "0002.tar" in stream.bad.first["unreachable shard"]


def test_bad_shards_are_not_counted_again_after_a_resume(tmp_path):
    write_shards(tmp_path, [4, 4, 4])
    source = ShardSource(shards=(f"{tmp_path}/{{0000..0005}}.tar",))
    for stop in range(13):
        stream = PairStream([source], shuffle_buffer=5)
        for _ in range(stop):
            next(stream)
        resumed = PairStream([source], shuffle_buffer=5)
        resumed.load_state_dict(through_json(stream.state_dict()))
        list(resumed)
        assert resumed.bad.counts == {"unreachable shard": 3}, stop


def test_a_shard_lost_before_stays_lost_until_the_window_is_through(tmp_path):
    paths = write_shards(tmp_path, [4, 4, 4])
    source = ShardSource(shards=(f"{tmp_path}/{{0000..0002}}.tar",))
    hidden = paths[1].rename(tmp_path / "hidden")
    stream = PairStream([source], shuffle_buffer=100)
    seen = [next(stream) for _ in range(3)]
    state = through_json(stream.state_dict())
    hidden.rename(paths[1])  # it is back
    resumed = PairStream([source], shuffle_buffer=100)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert sorted(numbers([*seen, *rest])) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert len(list(resumed)) == 12


def test_a_source_that_yields_nothing_is_one_clear_error(tmp_path):
    source = ShardSource(shards=(f"{tmp_path}/{{0..3}}.tar",))
    with pytest.raises(
        ConfigError, match=r"Nothing can be read from .*unreachable shard \(no such"
    ):
        next(PairStream([source]))
    with pytest.raises(ConfigError, match="no source to take pairs from"):
        PairStream([])


def test_a_position_is_small(shards):
    stream = PairStream([shards])
    for _ in range(20):
        next(stream)
    assert len(json.dumps(stream.state_dict())) < 500


def test_flickr8k_is_whole_in_every_split_over_ranks(shared_folder):
    source = ShardSource(shards=(f"{shared_folder}/data/flickr8k/train-{{0000..0005}}.tar",))
    found = []
    for rank in range(2):
        found += numbers(PairStream([source], seed=1, rank=rank, world_size=2))
    assert sorted(found) == list(range(6000))
