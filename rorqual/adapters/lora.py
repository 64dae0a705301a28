"""LoRA on the Linear seam: y = W x + scale * B (A x), W frozen in whatever storage it has (Hu et al. 2021, arXiv 2106.09685, section 4).

    apply(model, LoraConfig(rank=16))           # freezes the model, puts adapters on the projections that the configuration names
    parameters = trainable(model)               # {name: parameter}, what an optimiser gets

A starts uniform in +-1/sqrt(in), drawn from (seed, name) so that no layout changes a value; B starts at zero, so a new adapter changes
nothing. Adapters are FP32. A weight in FP8 is dequantised for the forward pass and again for its input's gradient, never kept; routed
experts keep their fused path unless adapters sit on them. Shape letters: n rows, i in-features, o out-features, r rank, e expert.
"""

from __future__ import annotations

import hashlib
import re

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError
from rorqual.fp8.linear import Fp8GroupedLinear, Fp8Linear
from rorqual.model.layers import GroupedLinear, Linear
from rorqual.model.transformer import CausalLM

_PLACES = {
    "attention": re.compile(r"model\.layers\.\d+\.self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)"),
    "ffn": re.compile(r"model\.layers\.\d+\.mlp\.(?:shared_experts\.)?(gate_proj|up_proj|down_proj)"),
    "experts": re.compile(r"model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)"),
}


class LoraLinear(Linear):
    """A frozen Linear with an adapter. `dense_weight` is the merged matrix, which absorbed MLA takes W_UK and W_UV from."""

    def __init__(self, base: Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.scale = base.in_features, base.out_features, scale
        self.base, self.lora_A, self.lora_B = base, Linear(base.in_features, rank), Linear(rank, base.out_features)

    def delta(self) -> Float[Tensor, "o i"]:
        """What the adapter adds to the matrix, in FP32."""
        return self.scale * (self.lora_B.weight @ self.lora_A.weight)

    def dense_weight(self) -> Float[Tensor, "o i"]:
        base = self.base.dense_weight()
        return (base.float() + self.delta()).to(base.dtype)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        low = torch.nn.functional.linear(x, self.lora_A.weight.to(x.dtype))
        return self.base(x) + self.scale * torch.nn.functional.linear(low, self.lora_B.weight.to(x.dtype))


class LoraGroupedLinear(GroupedLinear):
    """Frozen routed experts with an adapter each; having a forward of its own, it makes the block compose its experts unfused."""

    def __init__(self, base: GroupedLinear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.in_features, self.out_features, self.scale = base.num_groups, base.in_features, base.out_features, scale
        self.base = base
        self.lora_A = GroupedLinear(base.num_groups, base.in_features, rank)
        self.lora_B = GroupedLinear(base.num_groups, rank, base.out_features)

    def delta(self) -> Float[Tensor, "e o i"]:
        """What the adapters add to the experts' matrices, in FP32."""
        return self.scale * torch.bmm(self.lora_B.weight, self.lora_A.weight)

    def fprop(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        added = self.lora_B.fprop(self.lora_A.fprop(x.float(), offs), offs)
        return self.base.fprop(x, offs) + self.scale * added.to(x.dtype)

    def forward(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        added = self.lora_B(self.lora_A(x.float(), offs), offs)
        return self.base(x, offs) + self.scale * added.to(x.dtype)


class FrozenFp8Linear(Fp8Linear):
    """An FP8 Linear that passes gradients on to its input; its matrix is dequantised once more for that."""

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        return _FrozenLinear.apply(x, self)


class FrozenFp8GroupedLinear(Fp8GroupedLinear):
    """FP8 experts that pass gradients on to their rows."""

    def dgrad(self, dy: Float[Tensor, "n o"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n i"]:
        out = dy.new_empty(dy.shape[0], self.in_features)
        start = 0
        for expert, end in enumerate(offs.tolist()):
            if end > start:
                torch.mm(dy[start:end], self.expert_weight(expert).to(dy.dtype), out=out[start:end])
            start = end
        return out

    def forward(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        return _FrozenGrouped.apply(x, offs, self)


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, layer):  # type: ignore[no-untyped-def]
        ctx.layer = layer
        return torch.nn.functional.linear(x, layer.dense_weight().to(x.dtype))

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return dy @ ctx.layer.dense_weight().to(dy.dtype), None


class _FrozenGrouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, offs, layer):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(offs)
        ctx.layer = layer
        return layer.fprop(x.detach(), offs)

    @staticmethod
    def backward(ctx, dy):  # type: ignore[no-untyped-def]
        return ctx.layer.dgrad(dy.contiguous(), ctx.saved_tensors[0]), None, None


# ---------------------------------------------------------------------- on a model


def places(model: CausalLM, targets: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """(name, module) of every projection that the targets name, MTP modules included, in order of the model."""
    return [(name, module) for name, module in model.named_modules() if any(_PLACES[target].fullmatch(name) for target in targets)]


def apply(model: CausalLM, config: LoraConfig) -> CausalLM:
    """Freezes the model and puts new adapters on it, in place. ConfigError where there is nothing to put them on, or they are there already."""
    if adapted(model):
        raise ConfigError("the model has adapters already; merge them first")
    model.requires_grad_(False)
    for module in model.modules():
        if type(module) is Fp8Linear:
            module.__class__ = FrozenFp8Linear
        elif type(module) is Fp8GroupedLinear:
            module.__class__ = FrozenFp8GroupedLinear
    found = places(model, config.targets)
    if not found:
        raise ConfigError(f"lora.targets ({', '.join(config.targets)}) name no projection of this model")
    device = model.head_weight.device
    for name, module in found:
        parent, _, child = name.rpartition(".")
        with device:
            new: LoraLinear | LoraGroupedLinear
            if isinstance(module, GroupedLinear):
                new = LoraGroupedLinear(module, config.rank, config.scale)
            else:
                assert isinstance(module, Linear)
                new = LoraLinear(module, config.rank, config.scale)
        for part in (new.lora_A, new.lora_B):
            part.weight.data = part.weight.data.float()
        _init(new, name, config.seed)
        setattr(model.get_submodule(parent), child, new)
    return model


@torch.no_grad()
def _init(layer: LoraLinear | LoraGroupedLinear, name: str, seed: int) -> None:
    bound = layer.in_features**-0.5
    weight = layer.lora_A.weight
    for index, matrix in enumerate(weight if weight.dim() == 3 else [weight]):
        key = hashlib.blake2b(f"lora:{seed}:{name}:{index}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        matrix.copy_(torch.empty(matrix.shape).uniform_(-bound, bound, generator=generator))
    layer.lora_B.weight.zero_()


def adapted(model: CausalLM) -> dict[str, LoraLinear | LoraGroupedLinear]:
    """{name: layer} of every layer with an adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (LoraLinear, LoraGroupedLinear))}


def trainable(model: CausalLM) -> dict[str, nn.Parameter]:
    """{name: parameter} of what is not frozen."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def merge(model: CausalLM) -> CausalLM:
    """Adds every adapter to its matrix and takes it away, in place; a matrix is rounded once, to its own dtype.

    ConfigError for FP8 weights, which cannot hold the sum: export such a run, which quantises anew.
    """
    for name, layer in adapted(model).items():
        if isinstance(layer.base, (Fp8Linear, Fp8GroupedLinear)):
            raise ConfigError(f"{name} is kept in FP8, which cannot hold the merged weight; load the base as bf16 or fp32")
        weight = layer.base.weight
        weight.copy_(weight.float() + layer.delta())
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.base)
    return model


@torch.no_grad()
def merged_copy(model: CausalLM, into: CausalLM | None = None) -> CausalLM:
    """A plain model for the engine: merged copies of the adapted matrices, everything else shared. `into`, an earlier copy, is refreshed.

    It costs memory for the adapted matrices alone, and takes the engine's compiled path, which adapters would not. Not for FP8 weights.
    """
    layers = adapted(model)
    if any(isinstance(layer.base, (Fp8Linear, Fp8GroupedLinear)) for layer in layers.values()):
        raise ConfigError("merged_copy needs base weights in fp32 or bf16; adapters over FP8 weights run unmerged")
    if into is None:
        with torch.device("meta"):
            into = CausalLM(model.config)
        shared = {name.replace(".base.", "."): tensor.detach() for name, tensor in model.state_dict().items() if ".lora_" not in name}
        for name in layers:
            shared[f"{name}.weight"] = torch.empty_like(shared[f"{name}.weight"])
        into.load_state_dict(shared, assign=True)
        into.requires_grad_(False).train(model.training)
    for name, layer in layers.items():
        target = into.get_submodule(name).weight
        assert isinstance(target, Tensor) and isinstance(layer.base.weight, Tensor)
        target.copy_(layer.base.weight.float() + layer.delta())
    return into
