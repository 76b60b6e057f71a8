"""Losses spread over real gloo processes against one process that holds the whole batch."""

import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jaxtyping import install_import_hook
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from loss_cases import EXACT, LargestTensor, scalar, unit

# The processes that the tests start import this file without pytest's hook.
with install_import_hook("twinlens", "beartype.beartype"):
    from twinlens.errors import ConfigError
    from twinlens.train.distributed import (
        distributed_contrastive_loss,
        distributed_sigmoid_loss,
        gather_with_gradient,
    )
    from twinlens.train.losses import (
        contrastive_distillation_loss,
        contrastive_loss,
        hard_negative_loss,
        matryoshka,
        sigmoid_loss,
    )

BATCH, DIM, TIMEOUT_SECONDS = 5, 6, 240


class Towers(nn.Module):
    """Two linear towers with a scale and a bias: what DistributedDataParallel averages."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        weights = torch.randn(2, DIM, 4, generator=generator, dtype=torch.float64)
        self.image, self.text = nn.Parameter(weights[0]), nn.Parameter(weights[1])
        self.log_scale, self.bias = nn.Parameter(scalar(2.3)), nn.Parameter(scalar(-1.7))

    def forward(self, image, text):
        embeddings = (normalize(side, dim=1) for side in (image @ self.image, text @ self.text))
        return *embeddings, self.log_scale * 1, self.bias * 1


def whole_batch(ranks):
    groups = torch.arange(ranks * BATCH) * 7 % 4  # every rank has members of every group
    return unit(ranks * BATCH, DIM, seed=1), unit(ranks * BATCH, DIM, seed=2), groups


def contrastive(image, text, log_scale, bias, groups, *, spread, **options):
    loss = distributed_contrastive_loss if spread else contrastive_loss
    return loss(image, text, log_scale, groups, **options) + 0 * bias


def sigmoid(image, text, log_scale, bias, groups, *, spread, **options):
    loss = distributed_sigmoid_loss if spread else sigmoid_loss
    return loss(image, text, log_scale, bias, groups, **options)


def gathered(image, text, log_scale, bias, groups, *, spread):
    """Three losses that have no form of their own across ranks: the whole batch on each."""
    if spread:
        image, text, groups = (gather_with_gradient(part) for part in (image, text, groups))
    return (
        hard_negative_loss(image, text, log_scale, positives=groups, hardness=0.4)
        + contrastive_distillation_loss(image, text, log_scale, text, image, log_scale)
        + matryoshka(lambda i, t: sigmoid_loss(i, t, log_scale, bias, groups), image, text, [2, 4])
    )


def ungrouped(loss):
    def without(image, text, log_scale, bias, groups, **options):
        return loss(image, text, log_scale, bias, None, **options)

    return without


LOSSES = {
    "contrastive": ungrouped(contrastive),
    "contrastive, chunks": ungrouped(partial(contrastive, chunk=2)),
    "contrastive, groups": contrastive,
    "contrastive, groups, chunks": partial(contrastive, chunk=3),
    "sigmoid": ungrouped(sigmoid),
    "sigmoid, chunks": ungrouped(partial(sigmoid, chunk=2)),
    "sigmoid, groups": sigmoid,
    "sigmoid, groups, chunks": partial(sigmoid, chunk=3),
    "gathered": gathered,
}


def value_and_gradients(loss, towers, image, text, groups, *, spread):
    """The loss, the gradients by the embeddings, and those by the parameters."""
    *embeddings, log_scale, bias = towers(image, text)
    for embedding in embeddings:
        embedding.retain_grad()
    towers.zero_grad()
    value = loss(*embeddings, log_scale, bias, groups, spread=spread)
    value.backward()
    return {
        "value": value.detach(),
        "by_embedding": [embedding.grad for embedding in embeddings],
        "by_parameter": [parameter.grad.clone() for parameter in towers.parameters()],
    }


def message_of(call):
    try:
        call()
    except ConfigError as error:
        return str(error)
    return "no error"


def messages(rank):
    """What each rank says to batches that differ, in one way after another."""
    scale = scalar(0.0)
    even, short = unit(4, 3), unit(4 - rank % 2, 3)
    groups = torch.zeros(4, dtype=torch.int64) if rank == 0 else None
    empty = torch.zeros(0, 3, dtype=torch.float64)
    return {
        "rows": message_of(lambda: distributed_contrastive_loss(short, short, scale)),
        "ring": message_of(lambda: distributed_sigmoid_loss(short, short, scale, scale)),
        "gather": message_of(lambda: gather_with_gradient(short)),
        "groups": message_of(lambda: distributed_contrastive_loss(even, even, scale, groups)),
        "empty": message_of(lambda: distributed_sigmoid_loss(empty, empty, scale, scale)),
    }


def largest_tensor(loss, *inputs):
    inputs = [tensor.requires_grad_() for tensor in inputs]
    with LargestTensor() as largest:
        loss(*inputs).backward()
    return largest.size


def half_precision(image, text):
    """Sent and added up in float32: the sum over ranks of what bfloat16 would round."""
    image, text = image.to(torch.bfloat16), text.to(torch.bfloat16)
    scale = torch.tensor(4.6)
    with torch.autocast("cpu", torch.bfloat16):
        return {
            "contrastive": distributed_contrastive_loss(image, text, scale),
            "sigmoid": distributed_sigmoid_loss(image, text, scale, torch.tensor(-10.0)),
        }


def one_rank(rank, ranks, folder):
    """What a process does; pytest's process reads what it saves."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    image, text, groups = (part.chunk(ranks)[rank] for part in whole_batch(ranks))
    results = {}
    for name, loss in LOSSES.items():
        towers = DistributedDataParallel(Towers())
        results[name] = value_and_gradients(loss, towers, image, text, groups, spread=True)
    results["messages"] = messages(rank)
    results["half"] = half_precision(image, text)
    wide = unit(32, 2, seed=rank), unit(32, 2, seed=9 + rank), scalar(1.0), scalar(0.0)
    results["largest"] = {
        "sigmoid": largest_tensor(distributed_sigmoid_loss, *wide),
        "sigmoid, chunks": largest_tensor(partial(distributed_sigmoid_loss, chunk=8), *wide),
        "contrastive, chunks": largest_tensor(
            partial(distributed_contrastive_loss, chunk=8), *wide[:3]
        ),
    }
    everyone = gather_with_gradient(torch.full((1, 2), rank))
    results["order"] = everyone[:, 0].tolist()
    pairs = [dist.new_group([first, first + 1]) for first in range(0, ranks - 1)]
    if rank < 2:  # a loss among some of the ranks only
        results["subgroup"] = distributed_sigmoid_loss(
            image, text, scalar(1.0), scalar(-1.0), groups, process_group=pairs[0]
        )
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def spread(request):
    """What each rank computed, in the order of ranks."""
    ranks = request.param
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(
            one_rank, args=(ranks, folder), nprocs=ranks, join=False
        )
        try:
            # join returns True once all are done and raises what a process raised.
            assert any(context.join(TIMEOUT_SECONDS) for _ in range(ranks)), "processes hang"
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(ranks)]


@pytest.mark.parametrize("name", LOSSES)
def test_ranks_together_equal_one_process_with_the_whole_batch(spread, name):
    ranks = len(spread)
    image, text, groups = whole_batch(ranks)
    whole = value_and_gradients(LOSSES[name], Towers(), image, text, groups, spread=False)
    mean = torch.stack([one[name]["value"] for one in spread]).mean()
    torch.testing.assert_close(mean, whole["value"], **EXACT)
    for side in (0, 1):
        by_embedding = torch.cat([one[name]["by_embedding"][side] for one in spread])
        torch.testing.assert_close(by_embedding, ranks * whole["by_embedding"][side], **EXACT)
    for one in spread:  # averaged by DistributedDataParallel: the same on every rank
        for ours, theirs in zip(one[name]["by_parameter"], whole["by_parameter"], strict=True):
            torch.testing.assert_close(ours, theirs, **EXACT)


def test_rows_are_gathered_in_the_order_of_ranks(spread):
    assert all(one["order"] == list(range(len(spread))) for one in spread)


def test_batches_that_differ_get_one_sentence_on_every_rank(spread):
    sentence = (
        "A loss across processes needs batches of equal size on every rank, but rank 0 holds "
        "{} and rank 1 {}; drop the incomplete last batch, and give groups on all ranks or on none."
    )
    rows = sentence.format("4 rows of 3 numbers", "3 rows of 3 numbers")
    for one in spread:
        assert one["messages"] == {
            "rows": rows,
            "ring": rows,
            "gather": rows,
            "groups": sentence.format("4 rows of 3 numbers with groups", "4 rows of 3 numbers"),
            "empty": "A loss across processes needs at least one pair on every rank and one text "
            "for each image, of the same width; every rank holds 0 rows of 0 numbers.",
        }


def test_no_rank_holds_the_similarities_of_everyone(spread):
    ranks = len(spread)
    for one in spread:
        assert one["largest"] == {
            "sigmoid": 32 * 32,  # one rank's images with one rank's texts
            "sigmoid, chunks": 8 * 32,
            "contrastive, chunks": 8 * ranks * 32,
        }


def test_half_precision_crosses_ranks_in_float32(spread):
    image, text, _ = whole_batch(len(spread))
    image, text = image.to(torch.bfloat16).double(), text.to(torch.bfloat16).double()
    whole = {
        "contrastive": contrastive_loss(image, text, scalar(4.6)),
        "sigmoid": sigmoid_loss(image, text, scalar(4.6), scalar(-10.0)),
    }
    for name, expected in whole.items():
        parts = torch.stack([one["half"][name] for one in spread])
        assert parts.dtype == torch.float32
        assert parts.mean().item() == pytest.approx(expected.item(), rel=2e-5)


def test_a_loss_can_be_shared_by_some_ranks_only(spread):
    first = slice(0, 2 * BATCH)
    image, text, groups = (part[first] for part in whole_batch(len(spread)))
    expected = sigmoid_loss(image, text, scalar(1.0), scalar(-1.0), groups)
    mean = torch.stack([one["subgroup"].detach() for one in spread[:2]]).mean()
    torch.testing.assert_close(mean, expected, **EXACT)


def test_one_process_alone_has_the_plain_losses():
    image, text, groups = whole_batch(1)
    scale, bias = scalar(1.0), scalar(-2.0)
    assert gather_with_gradient(image) is image
    alone = distributed_contrastive_loss(image, text, scale, groups)
    assert alone == contrastive_loss(image, text, scale, groups)
    alone = distributed_sigmoid_loss(image, text, scale, bias, groups, chunk=2)
    assert alone == sigmoid_loss(image, text, scale, bias, groups, chunk=2)
