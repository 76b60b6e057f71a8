"""What a run writes down about itself."""

import errno
import json
import os

import pytest

from twinlens.errors import TwinlensError
from twinlens.train.config import TrainConfig
from twinlens.train.log import RunLog, StepRecord, read_log
from twinlens.train.report import write_report
from twinlens.train.validate import goodness


def record(step, **changes):
    figures = {
        "total_steps": 1200,
        "epoch": 0.5,
        "loss": 2.5,
        "learning_rate": 1e-4,
        "logit_scale": 14.28,
        "gradient_norm": 0.314,
        "pairs_per_second": 1234.5,
        "data_wait": 0.03,
    }
    return StepRecord(step=step, **{**figures, **changes})


def test_the_line_says_what_a_person_watches():
    validation = {"text_to_image_recall@1": 0.25, "text_to_image_recall@5": 0.5, "loss": 3.0}
    line = record(1000, bad_samples=2, validation=validation).line()
    assert line == (
        "step 1,000/1,200  epoch 0.50  loss 2.5000  scale 14.3  grad 0.31  1,234 pairs/s  "
        "data wait 3%  2 bad samples  val t2i@1 0.2500  val loss 3.0000"
    )


def test_a_continued_log_has_each_step_once_and_no_torn_line(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(record(step))
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # the process died here
    log = RunLog(tmp_path, 2)
    log.write(record(3, loss=9.0))
    log.close()
    assert [(line["step"], line["loss"]) for line in read_log(tmp_path)] == [
        (1, 2.5),
        (2, 2.5),
        (3, 9.0),
    ]


def test_tensorboard_gets_the_curves_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path, 0)
    log.write(record(1, validation={"loss": 1.0}))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes() and b"validation/loss" in events.read_bytes()


def test_a_log_that_cannot_grow_is_one_sentence(tmp_path):
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = RunLog(tmp_path, 0)
    log.close()
    log._file = Full()
    with pytest.raises(TwinlensError, match=r"cannot be written \(No space left on device\)"):
        log.write(record(1))


def test_without_matplotlib_there_are_no_plots_and_a_sentence(tmp_path, monkeypatch):
    log = RunLog(tmp_path, 0)
    log.write(record(1))
    log.close()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = []
    write_report(tmp_path, TrainConfig(model="vit-ti-16"), {"loss": 1.5}, said.append)
    assert "pip install 'twinlens[train]'" in said[0]
    card = (tmp_path / "README.md").read_text()
    assert "| loss | 1.5000 |" in card and "plots/" not in card


def test_the_best_checkpoint_is_chosen_by_recall_and_else_by_loss():
    assert goodness({"a_recall@1": 0.2, "b_recall@1": 0.4, "loss": 9.0}) == pytest.approx(0.3)
    assert goodness({"loss": 2.0}) == -2.0 and goodness({}) is None


def test_a_configuration_survives_json_and_names_what_it_does_not_know(tmp_path):
    config = TrainConfig.from_dict(
        {
            "model": "vit-b-32",
            "data": [{"kind": "shards", "shards": ["a-{00..09}.tar"], "weight": 2.0}],
            "lora": {"kind": "lora", "rank": 4},
            "optimizer": {"warmup": 100, "schedule": "constant"},
        }
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="does not know 'learning_rat'"):
        TrainConfig.from_dict({"model": "x", "optimizer": {"learning_rat": 1}})
