"""A tower's weights from its input to its output, layer by layer.

What learns slower below (optim.py) and what is locked below (lock.py) both count so.
Works on names, for any tower: what stands before the numbered blocks or stages is the
first layer, each of them is one, and what follows them belongs to the last.
"""

import re

from torch import nn

_NUMBERED = re.compile(r"(blocks|stages|downsamples)\.(\d+)\.")


def layers_of(tower: nn.Module) -> list[list[str]]:
    """Names of the tower's parameters per layer; the first layer is the one at the input."""
    names = [name for name, _ in tower.named_parameters()]
    numbered = {name: match for name in names if (match := _NUMBERED.match(name))}
    count = 1 + max(
        (int(match[2]) for match in numbered.values() if match[1] != "downsamples"), default=-1
    )
    if count == 0:
        return [names]
    # ConvNeXt: a downsample leads into a stage, and the first stage has none.
    downsamples = {int(match[2]) for match in numbered.values() if match[1] == "downsamples"}
    layers: list[list[str]] = [[] for _ in range(count + 1)]
    passed = False
    for name in names:
        if match := numbered.get(name):
            passed = True
            number = int(match[2])
            if match[1] == "downsamples":
                number += count - len(downsamples)
            layers[number + 1].append(name)
        else:
            layers[-1 if passed else 0].append(name)
    return layers
