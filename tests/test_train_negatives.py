"""Hard negatives in training: captions made wrong, weights by hardness, parts and processes."""

import csv
import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from jaxtyping import install_import_hook
from PIL import Image

from loss_cases import EXACT, scalar, unit
from train_means_run import negatives_of, open_more, write_teacher
from train_processes import MEANS_PROGRAM, finish, start, start_together
from train_run import losses, open_memory, pairs_in_memory, tiny_clip, tiny_config, write_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

# The processes that the tests start import this file without pytest's hook.
with install_import_hook("twinlens", "beartype.beartype"):
    from twinlens.data.augment import Augment
    from twinlens.data.pairs import TableSource
    from twinlens.data.preprocess import Preprocess
    from twinlens.data.stream import PairStream
    from twinlens.data.tokenizer import TokenizerConfig, open_tokenizer
    from twinlens.errors import ConfigError
    from twinlens.train.accumulate import cached_gradients, whole_gradients
    from twinlens.train.config import TrainConfig
    from twinlens.train.distributed import distributed_hard_negative_loss, gather_uneven
    from twinlens.train.loader import BatchLoader
    from twinlens.train.loop import train
    from twinlens.train.losses import hard_negative_loss
    from twinlens.train.negatives import swapped_words
    from twinlens.train.objective import Towers, batch_loss
    from twinlens.train.teachers import Follower, TeacherOutputs

CAPTIONS = ("a red cat on a mat", "two men, one horse", "a dog", "The sea meets the sky")
BATCH, TIMEOUT_SECONDS = 4, 240


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("start") / "tiny")


def outcomes(caption):
    return {swapped_words(caption, np.random.default_rng(seed)) for seed in range(60)}


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        (
            "the horse eats the grass",
            {"the eats horse the grass", "the grass eats the horse", "the horse grass the eats"},
        ),
        ("Dogs on the beach.", {"Beach on the dogs."}),
        ("a café near the well-known pier", {"a well-known near the café pier"}),
        ("Paris by Night", {"Night by Paris"}),  # what has a capital of its own keeps it
        ("a red and white flag", {"a flag and white red", "a red and flag white"}),
        ("a dog and a cat on a sofa", {"a sofa and a cat on a dog", "a dog and a sofa on a cat"}),
    ],
)
def test_two_words_change_places(caption, wrong):
    found = outcomes(caption)
    if "café" in caption:  # one of three
        assert wrong < found and len(found) == 3
    else:
        assert found == wrong


@pytest.mark.parametrize(
    "caption",
    ["", "a dog", "the dog and the Dog", "42 of 43", "on the", "a dog and a cat", "dog, sea, sand"],
)
def test_where_no_two_words_can_change_the_meaning_there_is_no_negative(caption):
    assert outcomes(caption) == {None}


def test_the_words_of_a_caption_are_the_same_ones_in_another_order():
    caption = "Several climbers in a row are climbing the rock, while the man in red watches."
    for wrong in outcomes(caption):
        assert wrong != caption
        assert sorted(wrong.lower().split()) != caption.lower().split()
        letters = str.maketrans("", "", ",.")
        ours, theirs = (t.lower().translate(letters).split() for t in (wrong, caption))
        assert sorted(ours) == sorted(theirs)


@pytest.fixture
def source(tmp_path):
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption"])
        for number in range(12):
            Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
            table.writerow([f"{number}.png", CAPTIONS[number % 4]])
    return TableSource(path=str(tmp_path / "captions.csv"))


def loaded(source, batches, workers=2, **options):
    tokenizer = open_tokenizer(TokenizerConfig(kind="clip_bpe", context=12), Path())
    preprocess = Preprocess(image_size=8, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    loader = BatchLoader(
        PairStream([source], seed=4), preprocess, tokenizer, Augment(), 4, workers, seed=4,
        repeat=True, **options,
    )  # fmt: skip
    taken = iter(loader)
    found = [next(taken) for _ in range(batches)]
    taken.close()
    return found, tokenizer


def test_a_batch_brings_the_wrong_captions_of_those_that_can_be_wrong(source):
    found, tokenizer = loaded(source, 3, negatives="swap")
    possible = {text: outcomes(text) for text in CAPTIONS}
    for batch in found:
        rows = [CAPTIONS[int(Path(key).stem) % 4] for key in batch.keys]
        able = [text for text in rows if text != "a dog"]
        assert len(batch.negative_ids) == len(able)
        width = batch.token_ids.shape[1]
        assert batch.negative_ids.shape[1] == width
        for ids, text in zip(batch.negative_ids, able, strict=True):
            candidates = [tokenizer([wrong])[0] for wrong in possible[text]]
            known = [row.tolist() + [0] * (width - len(row)) for row in candidates]
            assert ids.tolist() in known


def test_wrong_captions_depend_on_seed_and_position_alone_and_change_nothing_else(source):
    several, _ = loaded(source, 6, workers=3, negatives="swap")
    single, _ = loaded(source, 6, workers=1, negatives="swap")
    without, _ = loaded(source, 6)
    for one, other, plain in zip(several, single, without, strict=True):
        assert torch.equal(one.negative_ids, other.negative_ids)
        assert torch.equal(one.pixel_values, plain.pixel_values)
        assert one.keys == plain.keys and plain.negative_ids is None
        shared = plain.token_ids.shape[1]
        assert torch.equal(one.token_ids[:, :shared], plain.token_ids)


def test_a_run_on_files_with_wrong_captions_goes_on_exactly(source, model, tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record.step == 5:
            raise Stop

    means = {"negative_captions": "swap", "hardness": 0.3, "accumulate": 2, "steps": 8}
    config = tiny_config(model, data=(source,), **means)
    train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "parts", progress=stop)
    train(config, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_data_without_negative_captions_is_named(model, tmp_path):
    config = tiny_config(model, negative_captions="swap", steps=1)
    with pytest.raises(ConfigError, match="The data brings no negative captions"):
        train(config, tmp_path / "run", open_inputs=open_memory)
    train(config, tmp_path / "run", open_inputs=open_more)  # and nothing is in the way


def test_the_sigmoid_loss_has_no_hard_negatives():
    for means in ({"hardness": 0.5}, {"negative_captions": "swap"}):
        with pytest.raises(ConfigError, match="are of the contrastive loss"):
            TrainConfig(model="tiny", loss="sigmoid", **means)
    with pytest.raises(ConfigError, match=r"hardness must not be negative: -0.1"):
        TrainConfig(model="tiny", hardness=-0.1)
    config = TrainConfig(model="tiny", hardness=0.5, negative_captions="swap")
    assert TrainConfig.from_dict(config.to_dict()) == config


def everything(with_teacher):
    """A student in float64 with all that gives rows to the loss, and what makes its batch loss."""
    torch.manual_seed(3)
    clip = tiny_clip().double().train()
    follower = Follower(8, [5]).double() if with_teacher else None
    config = TrainConfig(
        model="tiny",
        hardness=0.4,
        negative_captions="swap",
        matryoshka=(4,),
        teachers=("other",) if with_teacher else (),
        teacher_weight=0.0,
        feature_weight=0.7 if with_teacher else 0.0,
    )
    teachers = []
    if with_teacher:
        teachers = [TeacherOutputs(unit(32, 5, seed=1), unit(32, 5, seed=2), scalar(1.0))]
    towers = Towers(clip, None, "cpu", follower)
    return towers, lambda out: batch_loss(config, out, torch.arange(32) // 2, teachers)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_parts_with_other_numbers_of_negatives_give_the_gradients_of_the_whole(with_teacher):
    pixels, ids = pairs_in_memory()
    pixels = pixels.double()
    keys = tuple(map(str, range(32)))
    whole, loss = everything(with_teacher)
    value = whole_gradients(whole, loss, (pixels, ids, negatives_of(ids, keys)))
    split, loss = everything(with_teacher)
    # Parts of 1 row: the negatives are 0 or 1.
    edges = [0, 1, 12, 23, 32]
    parts = [
        (pixels[a:b], ids[a:b], negatives_of(ids[a:b], keys[a:b]))
        for a, b in itertools.pairwise(edges)
    ]
    assert [len(part[2]) for part in parts] == [0, 8, 7, 6]
    again = cached_gradients(split, loss, parts, module=split)
    torch.testing.assert_close(again, value, **EXACT)
    wanted = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in split.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert ("follower.image.0.weight" in found) == with_teacher
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, **EXACT, msg=name)


def test_the_loss_of_a_batch_is_that_of_its_pairs_and_negatives():
    towers, _ = everything(False)
    pixels, ids = pairs_in_memory()
    negatives = negatives_of(ids, tuple(map(str, range(32))))
    with torch.no_grad():
        out = towers(pixels.double(), ids, negatives)
        torch.testing.assert_close(out.negative_text, towers.text(negatives), **EXACT)
        torch.testing.assert_close(out.text, towers.text(ids), **EXACT)
    config = TrainConfig(model="tiny", hardness=0.4, negative_captions="swap")
    loss = hard_negative_loss(out.image, out.text, out.log_scale, out.negative_text, hardness=0.4)
    torch.testing.assert_close(batch_loss(config, out, None), loss, **EXACT)
    plain = batch_loss(TrainConfig(model="tiny"), out._replace(negative_text=None), None)
    assert loss > plain + 0.01


COUNTS = {"some": (3, 0, 2), "none": (0, 0, 0), "equal": (2, 2, 2)}  # negatives by rank


def shares(ranks, counts):
    """The whole batch with its negatives, and each rank's share of it."""
    image, text = unit(ranks * BATCH, 6, seed=1), unit(ranks * BATCH, 6, seed=2)
    groups = torch.arange(ranks * BATCH) * 7 % 4
    negatives = unit(6, 6, seed=3)[: sum(counts[:ranks])]
    spread = zip(
        image.chunk(ranks),
        text.chunk(ranks),
        negatives.split(list(counts[:ranks])),
        groups.chunk(ranks),
        strict=True,
    )
    return (image, text, negatives, groups), list(spread)


def loss_and_gradients(loss, image, text, negatives, groups, **options):
    leaves = [t.clone().requires_grad_() for t in (image, text, scalar(1.3), negatives)]
    value = loss(*leaves, groups, hardness=0.6, **options)
    value.backward()
    return [value.detach(), *(leaf.grad for leaf in leaves)]


def one_rank(rank, ranks, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    results = {}
    for name, counts in COUNTS.items():
        own = shares(ranks, counts)[1][rank]
        for chunk in (None, 3):
            results[name, chunk] = loss_and_gradients(
                distributed_hard_negative_loss, *own, chunk=chunk
            )
        results[name, "rows"] = gather_uneven(own[2])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_equal_one_process_with_the_whole_batch(ranks):
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(
            one_rank, args=(ranks, folder), nprocs=ranks, join=False
        )
        try:
            assert any(context.join(TIMEOUT_SECONDS) for _ in range(ranks)), "processes hang"
        finally:
            for process in context.processes:
                process.kill()
        spread = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]
    for name, counts in COUNTS.items():
        whole = shares(ranks, counts)[0]
        value, by_image, by_text, by_scale, by_negative = loss_and_gradients(
            hard_negative_loss, *whole
        )
        for rank in range(ranks):
            torch.testing.assert_close(spread[rank][name, "rows"], whole[2], **EXACT)
        for chunk in (None, 3):
            ours = list(zip(*(one[name, chunk] for one in spread), strict=True))
            torch.testing.assert_close(torch.stack(ours[0]).mean(), value, **EXACT)
            torch.testing.assert_close(torch.stack(ours[3]).mean(), by_scale, **EXACT)
            for mine, gradient in ((1, by_image), (2, by_text), (4, by_negative)):
                torch.testing.assert_close(torch.cat(ours[mine]), ranks * gradient, **EXACT)


@pytest.mark.parametrize("distribute", ["ddp", "fsdp"])
def test_two_processes_with_negatives_give_the_curve_of_one(model, tmp_path, distribute):
    teacher = write_teacher(tmp_path / "teacher")
    settings = {
        "hardness": 0.4,
        "negative_captions": "swap",
        "accumulate": 2,
        "teachers": [str(teacher)],
        "feature_weight": 1.0,
        "steps": 8,
        "program": MEANS_PROGRAM,
    }
    first = start(tmp_path / "one", model, **settings)
    together = start_together(2, tmp_path / "two", model, distribute=distribute, **settings)
    finish(first, *together)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)
