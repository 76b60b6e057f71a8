"""A run's moment to and from a checkpoint: what state.py's files mean to a run.

With FSDP each process holds parts of the tensors: all take part, the first one writes.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from twinlens.errors import ConfigError, TwinlensError
from twinlens.model.checkpoint import build_clip
from twinlens.train import state
from twinlens.train.lora import merged_weights
from twinlens.train.processes import shared_like, whole
from twinlens.train.run import FOLLOWER, Run
from twinlens.train.start import write_model


def save_run(run: Run, step: int, best: dict[str, Any]) -> bool:
    """Write a checkpoint, and let `best` and `last` lead to theirs. Every process takes part."""
    live = {n: whole(t) for n, t in run.clip.state_dict().items()}
    average = {} if run.average is None else {n: whole(t) for n, t in run.average.values.items()}
    weights = run.named_weights()
    names: dict[Tensor, str] = {p: n for n, p in weights.items()}
    follower = {n: whole(p) for n, p in weights.items() if n.startswith(f"{FOLLOWER}.")}
    moments = {
        f"{names[p]}/{key}": whole(value)
        for p, values in run.optimizer.state.items()
        for key, value in values.items()
    }
    loaders = run.team.every(run.inputs.train.state_dict())
    saved = False
    if run.team.first:
        learns = {n for n, p in run.clip.named_parameters() if p.requires_grad}
        buffers = {n for n, _ in run.clip.named_buffers()}
        tensors = {
            "live": {n: t for n, t in live.items() if n in learns | buffers},
            "optimizer": moments,
        }
        if average:
            tensors["average"] = average
        if follower:
            tensors[FOLLOWER] = follower
        deployed = merged_weights(run.clip, {**live, **average})
        if run.config.lora is not None:
            tensors["adapter"] = {n: {**live, **average}[n] for n in sorted(learns)}
        facts = {
            "loaders": loaders,
            "best": best,
            "scaler": run.scaler.state_dict(),
            "average_updates": run.average.updates if run.average is not None else 0,
        }

        def write(folder: Path) -> None:
            source = f"step {step}"
            write_model(
                build_clip(run.start.model.config, deployed, source=source), run.start, folder
            )

        saved = state.write_saved(
            run.checkpoints, state.Saved(step, facts, tensors), write, say=run.say
        )
        if saved:
            for link, number in (("last", step), ("best", best["step"])):
                place = run.checkpoints / state.checkpoint_name(number) / "model"
                state.point(run.folder / link, place)
            state.keep_last(run.checkpoints, run.config.keep, run.folder / "best")
    return bool(run.team.agree(saved))


def restore_run(run: Run) -> tuple[int, dict[str, Any]]:
    """Go back to the last whole checkpoint: the steps done and which was best; 0 for none."""
    found = state.read_saved(run.checkpoints, say=run.say)
    step = run.team.agree(found[0].step if found else 0)
    if found is None or step != found[0].step:
        if step:
            raise TwinlensError(f"{run.checkpoints} is not the same for every process.")
        return 0, {}
    saved = found[0]
    loaders = saved.facts["loaders"]
    if len(loaders) != run.team.count:
        raise ConfigError(
            f"The run in {run.folder} has {len(loaders)} processes, not {run.team.count}: the "
            f"position in the data is each one's own. Start as many to continue."
        )
    with torch.no_grad():
        weights = run.named_weights()
        _copy(run.clip.state_dict(), saved.tensors["live"])
        _copy(weights, saved.tensors.get(FOLLOWER, {}))
        if run.average is not None:
            _copy(run.average.values, saved.tensors["average"])
            run.average.updates = saved.facts["average_updates"]
        for name, parameter in weights.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"{name}/step" in saved.tensors["optimizer"]:
                values = {key: saved.tensors["optimizer"][f"{name}/{key}"] for key in keys}
                run.optimizer.state[parameter] = {
                    key: value.to(parameter.device)
                    if key == "step"
                    else _laid_out_as(parameter, shared_like(value, parameter))
                    for key, value in values.items()
                }
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(saved.facts["scaler"])
    run.inputs.train.load_state_dict(loaders[run.team.rank])
    return saved.step, saved.facts["best"]


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` with its numbers in memory as the weight's: the fused AdamW goes through both."""
    if isinstance(value, DTensor):
        return value
    return torch.empty_like(parameter).copy_(value)


def _copy(into: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        target = into[name]
        shared = shared_like(tensor, target)
        if isinstance(target, DTensor):
            assert isinstance(shared, DTensor)
            target.to_local().copy_(shared.to_local())
        else:
            target.copy_(shared)
