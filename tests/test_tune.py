"""The batch size is chosen by measurement, remembered, and never a reason to fail."""

import json
import time

import numpy as np
import pytest

from twinlens.runtime import machine
from twinlens.runtime.machine import _container_share, processor_name, usable_cores
from twinlens.runtime.session import bounded_threads
from twinlens.runtime.tune import (
    CACHE_NAME,
    FALLBACK_BATCH_SIZE,
    best_batch,
    tuning_key,
)


class SlowTower:
    """Sleeps as long as `seconds(size)` says."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.sizes = []

    def run(self, batch):
        self.sizes.append(len(batch))
        time.sleep(self.seconds(len(batch)))
        return np.zeros((len(batch), 2), dtype=np.float32)


def pixels(size):
    return np.zeros((size, 3, 4, 4), dtype=np.float32)


def tune(tower, cache=None, **options):
    return best_batch(tower, pixels, key="some tower", cache=cache, **options)


def test_a_fixed_cost_per_call_asks_for_large_batches():
    tuning = tune(SlowTower(lambda size: 0.02 + 0.0005 * size), budget_seconds=1.0)
    assert tuning.batch_size == 32  # 0.036 s for 32 is 889 a second; 0.0285 s for 16 is 561
    assert tuning.images_per_second == tuning.measured[32]


def test_among_equal_speeds_the_smallest_batch_is_taken():
    tuning = tune(SlowTower(lambda size: 0.01 * size), budget_seconds=1.5)
    assert tuning.batch_size <= 2  # nothing is gained by waiting for more


def test_a_cliff_ends_the_search_before_the_largest_batches():
    tower = SlowTower(lambda size: 0.004 * size * (1 if size <= 4 else 3))
    assert tune(tower, budget_seconds=1.0).batch_size <= 4
    assert max(tower.sizes) == 8


def test_the_budget_is_kept_also_by_a_slow_tower():
    tower = SlowTower(lambda size: 0.2 * size)
    start = time.perf_counter()
    tuning = tune(tower, budget_seconds=0.3)
    assert time.perf_counter() - start < 0.6
    assert (tuning.batch_size, set(tuning.measured)) == (1, {1})


def test_no_budget_gives_the_fallback_and_remembers_nothing(tmp_path):
    tuning = tune(SlowTower(lambda size: 0.0), tmp_path, budget_seconds=0.0)
    assert (tuning.batch_size, tuning.measured) == (FALLBACK_BATCH_SIZE, {})
    assert not (tmp_path / CACHE_NAME).exists()


def test_a_batch_beyond_memory_is_not_chosen():
    class Small(SlowTower):
        def run(self, batch):
            if len(batch) > 2:
                raise MemoryError
            return super().run(batch)

    assert set(tune(Small(lambda size: 0.01), budget_seconds=0.3).measured) == {1, 2}


def test_what_was_measured_is_remembered_by_key(tmp_path):
    tower = SlowTower(lambda size: 0.002)
    first = tune(tower, tmp_path, budget_seconds=0.2)
    runs = len(tower.sizes)
    assert tune(tower, tmp_path, budget_seconds=0.2) == first
    assert len(tower.sizes) == runs
    best_batch(tower, pixels, key="another", cache=tmp_path, budget_seconds=0.1)
    assert len(tower.sizes) > runs
    assert set(json.loads((tmp_path / CACHE_NAME).read_text())["entries"]) == {
        "some tower",
        "another",
    }
    assert [path.name for path in tmp_path.iterdir()] == [CACHE_NAME]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": 0, "entries": {}}',
        '{"format": 1, "entries": []}',
        '{"format": 1, "entries": {"some tower": {"batch_size": "many"}}}',
        '{"format": 1, "entries": {"some tower": 3}}',
    ],
)
def test_a_damaged_cache_is_measured_over(tmp_path, content):
    (tmp_path / CACHE_NAME).write_text(content)
    tuning = tune(SlowTower(lambda size: 0.001), tmp_path, budget_seconds=0.1)
    assert tuning.measured
    assert tune(SlowTower(lambda size: 9.0), tmp_path, budget_seconds=0.1) == tuning


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert tune(SlowTower(lambda size: 0.001), tmp_path / "file", budget_seconds=0.1).measured


def test_callers_run_at_the_same_time():
    alone = tune(SlowTower(lambda size: 0.02 * size), budget_seconds=0.4, candidates=(1,))
    together = tune(
        SlowTower(lambda size: 0.02 * size), budget_seconds=0.4, candidates=(1,), callers=2
    )
    assert together.measured[1] > 1.5 * alone.measured[1]


def test_a_key_names_model_runtime_processor_and_threads():
    key = tuning_key("vit:abc", runtime="onnxruntime", threads=2, callers=3)
    assert key.startswith("vit:abc|onnxruntime ") and processor_name() in key
    assert key.endswith(f"|{usable_cores()}|3x2")


def test_threads_never_exceed_the_cores_of_this_process(monkeypatch):
    assert bounded_threads(None) == bounded_threads(10_000) == usable_cores()
    assert bounded_threads(1) == 1


def test_a_containers_share_of_time_counts_as_cores(tmp_path):
    assert _container_share(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert _container_share(tmp_path) == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert _container_share(tmp_path) is None
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert _container_share(tmp_path) == 4.0


@pytest.mark.parametrize(
    ("architecture", "flags", "exact"),
    [
        ("x86_64", "flags : fpu avx2 avx512_vnni", True),
        ("AMD64", "flags : fpu avx2 avx_vnni", True),
        ("x86_64", "flags : fpu avx2 avx512f", False),
        ("x86_64", None, False),
        ("aarch64", None, True),
    ],
)
def test_sums_of_bytes_are_only_guarded_where_they_could_overflow(
    tmp_path, monkeypatch, architecture, flags, exact
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    machine.multiplies_bytes_exactly.cache_clear()
    try:
        assert machine.multiplies_bytes_exactly() is exact
    finally:
        machine.multiplies_bytes_exactly.cache_clear()
