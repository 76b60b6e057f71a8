"""The training recipes: their arithmetic, their parts on made-up data, and their quick forms.

The quick forms train for a few steps on a 25th of the shared data; they skip without it.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "recipes"))

import lora
import scale
import vit_tiny
from labelled import (
    CLOTHING_TRAIN,
    LabelledSet,
    commonest_share,
    quick_copy,
    remembered_figures,
    training_source,
    write_shard,
)
from twinlens.config import ClipConfig, ClipTextConfig, EfficientNetLiteConfig, VitConfig
from twinlens.data.preprocess import Preprocess
from twinlens.data.shards import read_shards
from twinlens.data.stream import PairStream
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.model.checkpoint import load_checkpoint, save_checkpoint
from twinlens.model.clip import Clip
from twinlens.runtime.load import INPUTS_NAME, InputsConfig
from twinlens.train.config import LoraConfig

TEXT = ClipTextConfig(width=16, layers=1, heads=2, mlp_width=32, context=77)
VIT = VitConfig(width=16, layers=1, heads=2, mlp_width=32, image_size=32, patch_size=16)
CONVOLUTIONAL = EfficientNetLiteConfig(image_size=32, stem_width=8, head_width=16)
TOWERS = {"both": VIT, "text": CONVOLUTIONAL}


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_clothing(shared, keys, place="clothing/all-0000.tar.gz"):
    """Pictures of one colour, alternately of two labels, in a gzipped shard."""
    path = shared / "data" / place
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for key in keys:
            picture = io.BytesIO()
            Image.new("RGB", (8, 8), (key % 256, 0, 0)).save(picture, "JPEG")
            name = "T-Shirt" if key % 2 else "Long_Sleeve"
            add(tar, f"{key:06d}.jpg", picture.getvalue())
            add(tar, f"{key:06d}.json", json.dumps({"label": key % 2, "name": name}).encode())
    return shared


def write_model(folder, image=VIT, seed=0):
    torch.manual_seed(seed)
    save_checkpoint(Clip(ClipConfig(image=image, text=TEXT, dim=8)), folder)
    preprocess = Preprocess(image_size=32, resize="squash", mean=(0.5,) * 3, std=(0.5,) * 3)
    tokenizer = TokenizerConfig(kind="clip_bpe", context=TEXT.context)
    InputsConfig(preprocess=preprocess, tokenizer=tokenizer).write(folder / INPUTS_NAME)
    return folder


def is_picture(path):
    with Image.open(path) as image:
        return min(image.size) > 100


def test_a_set_may_be_every_other_key_or_some_labels(tmp_path):
    shared = write_clothing(tmp_path / "shared", range(6))
    whole = LabelledSet("clothing/all-*.tar.gz")

    def keys(chosen):
        return [int(sample.key) for sample in chosen.samples(shared)]

    assert keys(whole._replace(odd=True)) == keys(whole._replace(only=("T-Shirt",))) == [1, 3, 5]
    assert keys(whole._replace(odd=False, first_key=1, end_key=4)) == [2]


def test_clothing_is_cut_at_key_1200_and_its_labels_become_plain_words(tmp_path):
    shared = write_clothing(tmp_path / "shared", [1198, 1199, 1200])
    path = tmp_path / "train.tar"
    source = training_source(CLOTHING_TRAIN, shared, path)
    samples = list(read_shards([path]))
    assert [(s.key, s.info["name"]) for s in samples] == [
        ("001198", "long sleeve"),
        ("001199", "t-shirt"),
    ]
    assert PairStream([source]).samples_per_epoch() == 2  # plain, hence counted beforehand


def test_a_shard_keeps_every_synonym(tmp_path):
    shared = write_clothing(tmp_path / "shared", [0])
    (sample,) = LabelledSet("clothing/all-*.tar.gz").samples(shared)
    sample.info["names"] = ["Garbage_Truck", "dustcart"]
    assert write_shard([sample], tmp_path / "one.tar") == 1
    (written,) = read_shards([tmp_path / "one.tar"])
    assert written.info["names"] == ["garbage truck", "dustcart"]
    assert written.image == sample.image


def test_the_commonest_label_is_what_guessing_scores(tmp_path):
    shared = write_clothing(tmp_path / "shared", [1, 3, 5, 6])  # odd keys are of one label
    assert commonest_share(shared, LabelledSet("clothing/all-*.tar.gz")) == 0.75


def test_a_quick_copy_is_every_nth_sample_under_the_same_name(tmp_path):
    shared = write_clothing(tmp_path / "shared", range(1190, 1210))
    copy = quick_copy(shared, tmp_path / "copy", every=5)
    (path,) = (copy / "data").glob("*/*")
    assert path.relative_to(copy) == Path("data/clothing/all-0000.tar.gz")
    keys = [sample.key for sample in read_shards([path])]
    assert keys == ["001190", "001195", "001200", "001205"]


def test_figures_are_remembered_until_the_weights_change(tmp_path):
    folder, memory = write_model(tmp_path / "model"), tmp_path / "memory.json"
    seen = []

    def measure(runtime):
        assert (runtime / "model.json").is_file()
        seen.append(runtime)
        return {"accuracy": 0.5}

    for _ in range(2):
        assert remembered_figures(folder, memory, measure) == {"accuracy": 0.5}
    assert len(seen) == 1 and not seen[0].exists()
    write_model(folder, seed=1)
    remembered_figures(folder, memory, measure)
    assert len(seen) == 2


def test_a_picture_counts_when_no_other_labels_text_is_nearer():
    similarity = np.array(
        [
            [0.9, 0.9, 0.1],  # captions 0 and 1 are one label's: the same text twice
            [0.2, 0.2, 0.3],  # the other label's is nearer
            [0.1, 0.1, 0.8],
        ]
    )
    assert vit_tiny.label_accuracy(similarity, np.arange(3)) == {"accuracy": pytest.approx(2 / 3)}
    # Pictures and captions in another order are the same pairs.
    turned = similarity[[2, 0, 1]]
    assert vit_tiny.label_accuracy(turned, np.array([1, 2, 0]))["accuracy"] == pytest.approx(2 / 3)


def test_a_model_that_says_the_same_of_everything_scores_nothing():
    assert vit_tiny.label_accuracy(np.full((4, 4), 0.7), np.arange(4)) == {"accuracy": 0.0}


@pytest.mark.parametrize("towers", TOWERS)
def test_adapters_go_where_attention_blocks_are(towers):
    model = Clip(ClipConfig(image=TOWERS[towers], text=TEXT, dim=8))
    assert lora.adaptable_towers(model) == towers


def test_halfway_is_the_mean_of_both_weights(tmp_path):
    before = write_model(tmp_path / "before", CONVOLUTIONAL, seed=0)
    after = write_model(tmp_path / "after", CONVOLUTIONAL, seed=1)
    halfway = lora.write_between(before, after, tmp_path / "halfway")
    found, old, new = (load_checkpoint(f).state_dict() for f in (halfway, before, after))
    assert any(not torch.equal(old[name], new[name]) for name in old)
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (old[name] + new[name]) / 2)
    assert (halfway / INPUTS_NAME).read_text() == (before / INPUTS_NAME).read_text()


def test_learned_and_forgotten_are_mean_changes():
    before = {"scenes, odd keys": 0.5, "clothing": 0.8, "flickr8k": 0.6}
    after = {"scenes, odd keys": 0.75, "clothing": 0.5, "flickr8k": 0.7}
    assert lora.summary(before, after) == {
        "learned": pytest.approx(0.25),
        "elsewhere": pytest.approx(-0.1),  # (-0.3 + 0.1) / 2
        "worst_elsewhere": pytest.approx(-0.3),
    }


@pytest.mark.parametrize(
    ("model", "image", "text"),
    [("vit-b-32", 8.82, 5.96), ("vit-b-16", 35.13, 5.96), ("vit-l-14", 162.03, 13.3)],
)
def test_operations_are_those_of_openclips_profile(model, image, text):
    # open_clip, docs/model_profile.csv: image_gflops and text_gflops, to two decimals.
    flops = scale.step_flops(model)
    assert flops["image"] / 1e9 == pytest.approx(image, abs=0.01)
    assert flops["text"] / 1e9 == pytest.approx(text, abs=0.01)
    assert flops["step"] == 3 * (flops["image"] + flops["text"])


def test_cost_is_samples_over_a_rate():
    rate = scale.Rate("eight cores", 1000.0, True, "core-hours", 8, "")
    row = scale.cost(
        scale.Scale("vit-b-32", 7.2e6, 4096),
        rate,
        price_per_hour=0.5,
        bytes_per_sample=20e3,
        loader_ms=2.0,
    )
    assert row["hours"] == 2.0  # 7.2 million at 1,000 a second are 7,200 seconds
    assert row["core_hours"] == 16.0
    assert row["price"] == 1.0
    assert row["megabytes_per_second"] == 20.0
    assert row["loader_cores"] == 2.0


def test_a_gpu_that_is_not_here_is_marked_as_assumed():
    rate = scale.assumed_rate("H100", flops=1e12, mfu=0.5)
    assert rate.pairs_per_second == pytest.approx(494.5)  # half of 989 TFLOP/s
    assert not rate.measured and rate.how.startswith("assumed, not measured")


def test_datacomp_reads_35_kilobytes_a_sample():
    assert pytest.approx(35_156, abs=1) == scale.BYTES_PER_SAMPLE
    assert scale.SCALES["medium"].samples / scale.SCALES["medium"].batch == 31_250


def test_scale_notes_say_what_was_measured_and_what_was_not(monkeypatch):
    seen = scale.Rate("this machine, 2 threads", 10.0, True, "core-hours", 2, "")
    monkeypatch.setattr(scale, "measured_rate", lambda *args, **kwargs: seen)
    figures = scale.notes(price_per_hour=0.1, gpu_price_per_hour=3.0)
    medium, large = figures["scales"]["medium"], figures["scales"]["large"]
    here, *gpus = medium["machines"]
    assert here["measured"] and here["hours"] == pytest.approx(128e6 / 10 / 3600)
    assert here["price"] == pytest.approx(here["hours"] * 0.1)
    assert not any(gpu["measured"] for gpu in gpus)
    # 44.34 GFLOP a step against 123.27: the larger model was not measured.
    assert not large["machines"][0]["measured"]
    assert large["machines"][0]["pairs_per_second"] == pytest.approx(10 * 44.34 / 123.27, rel=1e-3)
    text = scale.text_of(figures)
    assert text.count("assumed, not measured") == 3 * len(gpus) + 1


def test_the_step_rate_is_really_measured(monkeypatch):
    calls = []
    monkeypatch.setattr(scale, "our_step", lambda *args, **kwargs: lambda: calls.append(1))
    rate = scale.measured_rate("vit-b-32", batch=2, steps=3)
    assert len(calls) == 4  # one that is not counted
    assert rate.measured and rate.pairs_per_second > 0


@pytest.mark.parametrize("towers", TOWERS)
def test_lora_trains_both_arms_and_locks_what_it_says(towers, tmp_path):
    shared = write_clothing(tmp_path / "shared", range(200), "scenes/val-0000.tar.gz")
    model = write_model(tmp_path / "model", TOWERS[towers])
    work = tmp_path / "work"
    figures = lora.run(
        str(model),
        shared,
        work,
        epochs=0.5,
        plot=tmp_path / "bars.png",
        measure=lambda runtime, folder: {"clothing": 0.5, "scenes": 0.5, "flickr8k": 0.5},
    )
    assert figures["towers"] == towers
    steps = {arm: values["steps"] for arm, values in figures["training"].items()}
    assert steps["lora"] == steps["full"]
    start, adapted, full = (
        load_checkpoint(work / name).state_dict()
        for name in ("lora/start", "lora/last", "full/last")
    )

    def moved(other):
        return {n.partition(".")[0] for n in start if not torch.equal(start[n], other[n])}

    assert ("image_tower" in moved(adapted)) == (towers == "both")
    assert "text_tower" in moved(adapted)
    assert {"image_tower", "text_tower", "image_projection"} <= moved(full)
    assert "image_projection" not in moved(adapted)
    assert is_picture(tmp_path / "bars.png")
    assert "learned, points" in lora.table(figures)


def test_lora_configurations_differ_in_adapters_and_rate_alone(tmp_path):
    shared = write_clothing(tmp_path / "shared", [0])
    source = training_source(CLOTHING_TRAIN, shared, tmp_path / "train.tar")
    with_lora = lora.settings("m", source, lora=LoraConfig()).to_dict()
    without = lora.settings("m", source, lora=None).to_dict()
    differing = {name for name in without if with_lora[name] != without[name]}
    assert differing == {"lora", "optimizer"}


def test_the_quick_vit_tiny_trains_resumes_and_measures(shared_folder, tmp_path):
    plot = tmp_path / "curve.png"
    figures = vit_tiny.run(shared_folder, tmp_path / "work", quick=True, plot=plot)
    # A 25th of 5,000 and of 1,200 pictures, 16 a step.
    assert figures["steps"] == (200 + 48) // 16
    assert np.isfinite([figures["first_loss"], figures["last_loss"]]).all()
    for moment in ("before", "after"):
        assert set(figures[moment]) == set(vit_tiny.HELD_OUT)
        assert all(0 <= value <= 1 for value in figures[moment].values())
    assert is_picture(plot)
    assert "commonest label" in vit_tiny.table(figures)
    again = vit_tiny.run(shared_folder, tmp_path / "work", quick=True)
    assert again["after"] == figures["after"] and again["steps"] == figures["steps"]


def test_the_quick_lora_measures_what_was_forgotten(shared_folder, tmp_path):
    model = write_model(tmp_path / "model", CONVOLUTIONAL)
    figures = lora.run(str(model), shared_folder, tmp_path / "work", quick=True)
    names = set(figures["figures"]["before"])
    assert {f"flickr8k test text_to_image_recall@{k}" for k in (1, 10)} <= names
    assert {f"flickr8k test image_to_text_recall@{k}" for k in (1, 10)} <= names
    for known in ("clothing", "tinyimagenet", "imagenette", "scenes"):
        assert any(name.startswith(known) for name in names)
    assert set(figures["figures"]) == set(lora.ARMS)
