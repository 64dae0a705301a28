"""Recomputation of cheap results in the backward pass (report section 3.2.3): norms, MLA up-projections, SwiGLU.

The wrapped methods run once in the forward pass. Their outputs are not kept for the gradient: whoever saves one gets a
ticket, and the first ticket presented in the backward pass computes the output anew from inputs that are kept anyway.
Nothing else runs twice: no routing, no counting (field case F13), no GEMM outside the up-projections. Values are the same to the bit.
The routed experts recompute their SwiGLU under every policy (model/moe.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rorqual.errors import ConfigError
from rorqual.model.layers import DenseMLP, RMSNorm
from rorqual.model.mla import MLA
from rorqual.model.transformer import CausalLM

_METHODS: dict[str, tuple[type[nn.Module], str]] = {
    "norms": (RMSNorm, "forward"),
    "mla_up": (MLA, "expand"),
    "swiglu": (DenseMLP, "activation"),
}


class _Result:
    """Outputs of one call, to be computed again: the function, its inputs, and how many tickets are still out."""

    def __init__(self, call: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.call, self.args, self.tickets = call, args, 0
        self.again: tuple[Tensor, ...] | None = None

    def take(self, index: int) -> Tensor:
        """Output `index`, computed if it is not at hand; dropped with the last ticket."""
        if self.again is None:
            with torch.no_grad():
                out = self.call(*self.args)
            self.again = out if isinstance(out, tuple) else (out,)
        tensor = self.again[index]
        self.tickets -= 1
        if self.tickets <= 0:
            self.again = None
        return tensor


class _Region:
    """One block's forward: knows the outputs made in it by wrapped methods and hands out tickets for them."""

    def __init__(self) -> None:
        self.made: dict[int, tuple[_Result, int, Tensor]] = {}  # storage address -> result; the tensor is held so that no address is reused

    def remember(self, call: Callable[..., Any], args: tuple[Any, ...], out: Tensor | tuple[Tensor, ...]) -> None:
        """Notes what a wrapped method has just returned."""
        result = _Result(call, args)
        for index, tensor in enumerate(out if isinstance(out, tuple) else (out,)):
            self.made[tensor.untyped_storage().data_ptr()] = (result, index, tensor)

    def pack(self, tensor: Tensor) -> Any:
        """What autograd keeps: a ticket for a noted output, anything else as it is."""
        found = self.made.get(tensor.untyped_storage().data_ptr())
        if found is None:
            return tensor
        result, index, _ = found
        result.tickets += 1
        return result, index, tensor.shape, tensor.stride(), tensor.storage_offset()

    @staticmethod
    def unpack(packed: Any) -> Tensor:
        """The tensor that a ticket stands for."""
        if isinstance(packed, Tensor):
            return packed
        result, index, shape, stride, offset = packed
        return result.take(index).as_strided(shape, stride, offset)


def apply(model: CausalLM, policy: tuple[str, ...]) -> None:
    """Makes the blocks of `model`, MTP modules included, recompute what `policy` names: any of "norms", "mla_up", "swiglu"."""
    for part in policy:
        if part not in _METHODS:
            raise ConfigError(f"recompute ({part!r}) is not known; use any of {', '.join(map(repr, _METHODS))}")
    if not policy:
        return
    for block in model.model.layers:
        _wrap_block(block, policy)


def _wrap_block(block: nn.Module, policy: tuple[str, ...]) -> None:
    regions: list[_Region] = []  # the open region of this block, if it is running
    for part in policy:
        kind, method = _METHODS[part]
        for module in block.modules():
            if isinstance(module, kind):
                setattr(module, method, _wrap_method(getattr(module, method), regions))
    forward = block.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        regions.append(_Region())
        try:
            with torch.autograd.graph.saved_tensors_hooks(regions[-1].pack, regions[-1].unpack):
                return forward(*args, **kwargs)
        finally:
            regions.pop().made.clear()  # autograd keeps the pack hook, and with it this region, until the backward pass

    block.forward = run


def _wrap_method(call: Callable[..., Any], regions: list[_Region]) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        out = call(*args)
        if regions:
            regions[-1].remember(call, args, out)
        return out

    return run
