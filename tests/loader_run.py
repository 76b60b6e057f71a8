"""A process that consumes batches and can be killed: python loader_run.py SHARDS LOG STATE.

After every batch a line with its keys and a digest of its content goes to LOG; after every
third the position goes to STATE, by a rename. If STATE is there, it goes on from it.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from twinlens.data.augment import Augment
from twinlens.data.pairs import ShardSource
from twinlens.data.preprocess import Preprocess
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import TokenizerConfig, open_tokenizer
from twinlens.train.loader import BatchLoader

BATCHES = 40


def main(shards: str, log: Path, state: Path) -> None:
    loader = BatchLoader(
        PairStream([ShardSource(shards=(shards,))], seed=4, shuffle_buffer=16),
        Preprocess(image_size=16, resize="shortest", mean=(0.5,) * 3, std=(0.5,) * 3),
        open_tokenizer(TokenizerConfig(kind="clip_bpe", context=16), Path()),
        Augment(crop_scale=(0.3, 1.0), flip=0.5, brightness=0.3),
        5,
        2,
        seed=4,
        captions="all",
        repeat=True,
    )
    number = 0
    if state.exists():
        saved = json.loads(state.read_text())
        loader.load_state_dict(saved["loader"])
        number = saved["batch"]
    batches = iter(loader)
    with log.open("a") as lines:
        while number < BATCHES:
            batch = next(batches)
            number += 1
            content = batch.pixel_values.numpy().tobytes() + batch.token_ids.numpy().tobytes()
            digest = hashlib.sha256(content).hexdigest()
            print(json.dumps([number, batch.keys, digest]), file=lines, flush=True)
            if number % 3 == 0:
                partial = state.with_suffix(".part")
                partial.write_text(json.dumps({"loader": loader.state_dict(), "batch": number}))
                os.replace(partial, state)
            time.sleep(0.01)  # so that there is a moment to be killed in
    batches.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
