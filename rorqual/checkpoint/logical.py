"""State under the name of what it is: global layer, global expert (design seam 7).

The model stacks the routed experts of a layer in one tensor, because grouped GEMMs want it so. Files never do: each expert
is a tensor of its own under its official name, so that any number of ranks can hold, save and load any part.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)\.weight")


def split_experts(named: Mapping[str, Tensor], first_expert: int = 0) -> dict[str, Tensor]:
    """Replaces every stacked expert tensor by views of its experts: no copy, writing to a view writes to the stack.

    Works for whatever is shaped like the parameters: weights, optimiser moments, moving averages, under any prefix.
    `first_expert` is the global number of the first expert held here.
    """
    views: dict[str, Tensor] = {}
    for name, tensor in named.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            views[name] = tensor
            continue
        width = tensor.shape[1] // 2
        for index in range(tensor.shape[0]):
            expert = f"{match[1]}.{first_expert + index}"
            if match[2] == "gate_up_proj":
                views[f"{expert}.gate_proj.weight"] = tensor[index, :width]
                views[f"{expert}.up_proj.weight"] = tensor[index, width:]
            else:
                views[f"{expert}.down_proj.weight"] = tensor[index]
    return views


def logical_tensors(model: nn.Module, prefix: str = "", first_expert: int = 0) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a model, detached, under `prefix` and their official per-expert names."""
    return split_experts({prefix + name: tensor.detach() for name, tensor in model.state_dict().items()}, first_expert)
