"""Kills a real indexing process at random moments. Run with: pytest tests/test_crash.py"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from twinlens.search.photos import PhotoIndex
from twinlens.search.store import Index
from twinlens.testing import FakeEmbedder

NUM_PHOTOS = 2000
BATCH = 32

# Logs every photo when it has been embedded, and commits every batch.
INDEXER = """
import sys, time
from pathlib import Path
from twinlens.search import sync
from twinlens.search.store import Index, ModelRecord
from twinlens.testing import FakeEmbedder

class SlowEmbedder(FakeEmbedder):
    def stream_images(self, sources, *, batch_size=None):
        named = []
        def noted():
            for source in sources:
                named.append(Path(source).name)
                yield source
        for batch in super().stream_images(noted(), batch_size=batch_size):
            time.sleep(0.015)
            with open(sys.argv[2], "a") as log:
                log.write("".join(name + "\\n" for name in named))
            named.clear()
            yield batch

sync.COMMIT_SECONDS = 0.0
folder = Path(sys.argv[1])
embedder = SlowEmbedder(batch_size=32)
model = ModelRecord(model_id=embedder.model_id, name="fake", dim=embedder.dim)
with Index.open(folder) or Index.create(folder, model) as index:
    sync.sync_folder(index, embedder, folder)
"""


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", INDEXER, str(folder), str(log)])


def committed(folder: Path) -> set[str]:
    """The photos that the index names, read only after a process has died."""
    index = Index.open(folder)
    if index is None:
        return set()
    with index:
        return {os.fsdecode(row.path) for row in index.stored_files()}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_9_at_any_moment_loses_only_the_work_in_flight(tmp_path):
    folder, log = tmp_path / "photos", tmp_path / "log"
    folder.mkdir()
    log.touch()
    for number in range(NUM_PHOTOS):
        (folder / f"{number:04}.jpg").write_bytes(b"photo %d" % number)
    moments = random.Random(0)
    safe: set[str] = set()
    for _ in range(6):
        process = start(folder, log)
        while len(committed(folder)) <= len(safe) and process.poll() is None:
            time.sleep(0.005)  # until it is under way
        time.sleep(moments.uniform(0.0, 0.08))
        process.kill()
        process.wait()
        embedded, now = read_and_empty(log), committed(folder)
        assert safe <= now, "a photo that was indexed before the kill is not any more"
        assert safe.isdisjoint(embedded), "a photo that was indexed was embedded again"
        assert len(set(embedded) - now) <= BATCH, "more was lost than the batch in flight"
        safe = now
    assert len(safe) < NUM_PHOTOS, "every kill came in the middle"

    assert start(folder, log).wait() == 0
    embedded = read_and_empty(log)
    assert safe.isdisjoint(embedded)
    assert len(embedded) == NUM_PHOTOS - len(safe)
    check_every_photo_is_there_once(folder)


def read_and_empty(log: Path) -> list[str]:
    lines = log.read_text().splitlines()
    log.write_text("")
    return lines


def check_every_photo_is_there_once(folder: Path) -> None:
    index = Index.open(folder)
    assert index is not None
    with PhotoIndex(index, FakeEmbedder(), folder) as photos:
        assert len(photos) == NUM_PHOTOS
        vectors, live = index.live_vectors()
        slots = np.flatnonzero(live)
        paths = [folder / os.fsdecode(path) for path in index.paths(slots)]
        assert len(set(paths)) == NUM_PHOTOS
        np.testing.assert_array_equal(vectors[slots], FakeEmbedder().images(paths))
