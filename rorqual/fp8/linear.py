"""Linears whose weights stay in FP8 and are dequantised where they are used (report section 3.3; specification 6.2, 10.2). Inference only.

A model of these classes holds one byte a weight. What is used becomes BF16-rounded values in the compute dtype: a Linear's matrix per
call, a routed expert's only when it has rows. So results are those of the BF16 twin held in FP32, and a 671B layer fits where its
FP32 copy would not. Gate and up projections keep scales of their own: 160 rows each are 2 + 2 row blocks, never 3 (field case F08).
Shape letters: n rows, i in-features, o out-features, e expert, p and q row and column blocks, v vocabulary, m model width.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.kernels import fp8
from rorqual.model.layers import Embedding, GroupedLinear, Linear
from rorqual.model.transformer import CausalLM
from rorqual.planner.inventory import fp8_block_size

_HEAD_ROWS = 16384  # rows of the head that are in FP32 at a time


def _refuse_gradients(x: Tensor) -> None:
    if torch.is_grad_enabled() and x.requires_grad:
        raise ConfigError("weights kept in FP8 are for inference; load with weights='fp32' or 'bf16' to train")


class _KeepsScales(nn.Module):
    """Codes and scales follow a model to a device and are never cast: a scale rounded to BF16 would change every value of its block."""

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        def move_only(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move_only, recurse)


class Fp8Linear(_KeepsScales, Linear):
    """y = x W^T with W in E4M3 codes [o, i] and scales [p, q]."""

    def __init__(self, in_features: int, out_features: int, block: tuple[int, int]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.block = in_features, out_features, block
        self.register_buffer("codes", torch.empty(out_features, in_features, dtype=torch.uint8))
        self.register_buffer("scale_inv", torch.empty(fp8.scale_shape(out_features, in_features, block), dtype=torch.float32))

    codes: Tensor
    scale_inv: Tensor

    def dense_weight(self) -> Float[Tensor, "o i"]:
        """The dequantised matrix: BF16 values, held in FP32."""
        out = torch.empty(self.codes.shape, dtype=torch.float32, device=self.codes.device)
        return fp8.dequantize(self.codes, self.scale_inv, self.block, out=out)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        _refuse_gradients(x)
        return torch.nn.functional.linear(x, self.dense_weight().to(x.dtype))


class Fp8GroupedLinear(_KeepsScales, GroupedLinear):
    """One FP8 matrix per expert, codes [e, o, i], scales [e, parts, p, q]; `parts` matrices of o / parts rows each are stacked."""

    def __init__(self, num_groups: int, in_features: int, out_features: int, block: tuple[int, int], parts: int = 1) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.in_features, self.out_features, self.block, self.parts = num_groups, in_features, out_features, block, parts
        shape = fp8.scale_shape(out_features // parts, in_features, block)
        self.register_buffer("codes", torch.empty(num_groups, out_features, in_features, dtype=torch.uint8))
        self.register_buffer("scale_inv", torch.empty(num_groups, parts, *shape, dtype=torch.float32))

    codes: Tensor
    scale_inv: Tensor

    def expert_weight(self, expert: int) -> Float[Tensor, "o i"]:
        """One expert's dequantised matrix: BF16 values, held in FP32."""
        out = torch.empty(self.codes.shape[1:], dtype=torch.float32, device=self.codes.device)
        rows = self.out_features // self.parts
        for part in range(self.parts):
            piece = slice(part * rows, (part + 1) * rows)
            fp8.dequantize(self.codes[expert, piece], self.scale_inv[expert, part], self.block, out=out[piece])
        return out

    def fprop(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        """y_r = W_e(r) x_r; experts without rows are not touched."""
        out = x.new_empty(x.shape[0], self.out_features)
        start = 0
        for expert, end in enumerate(offs.tolist()):
            if end > start:
                torch.mm(x[start:end], self.expert_weight(expert).to(x.dtype).t(), out=out[start:end])
            start = end
        return out

    def forward(self, x: Float[Tensor, "n i"], offs: Int[Tensor, " e"]) -> Float[Tensor, "n o"]:
        _refuse_gradients(x)
        return self.fprop(x.detach(), offs)


class _Bf16Embedding(Embedding):
    """Rows in BF16, looked up as FP32."""

    def forward(self, input_ids: Int[Tensor, "b s"]) -> Float[Tensor, "b s m"]:
        return super().forward(input_ids).float()


class Fp8CausalLM(CausalLM):
    """A model with FP8 Linears, embedding and head in BF16, the rest in FP32; made by `empty_model`."""

    def logits(self, hidden: Float[Tensor, "... m"]) -> Float[Tensor, "... v"]:
        """The head in FP32, a part of the vocabulary at a time: 129,280 x 7,168 values in FP32 would take 3.7 GB."""
        weight = self.head_weight
        parts = [
            torch.nn.functional.linear(hidden.float(), weight[at : at + _HEAD_ROWS].float()) for at in range(0, len(weight), _HEAD_ROWS)
        ]
        return torch.cat(parts, dim=-1)


def empty_model(config: ModelConfig, device: torch.device | str = "cpu") -> CausalLM:
    """A model whose Linears have FP8 storage, uninitialised; it computes in FP32.

    config.quantization_config gives the block size (ConfigError without it). No weight is allocated in another dtype on the way.
    """
    block = fp8_block_size(config)
    if block is None:
        raise ConfigError("the configuration has no quantization_config; weights can be kept in FP8 only where it gives a block size")
    with torch.device("meta"):
        model = Fp8CausalLM(config)
    with torch.device(device):
        _swap(model, block)
    for module in model.modules():
        wide = isinstance(module, Embedding) or module is model.lm_head
        for name, parameter in list(module.named_parameters(recurse=False)):
            kept = torch.bfloat16 if wide else parameter.dtype
            setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=kept, device=device), requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device))
    return model.eval()


def _swap(model: CausalLM, block: tuple[int, int]) -> None:
    """Replaces every Linear that the layout quantises; eh_proj, routers, embedding and head stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, GroupedLinear):
                parts = 2 if name == "gate_up_proj" else 1
                setattr(parent, name, Fp8GroupedLinear(child.num_groups, child.in_features, child.out_features, block, parts))
            elif isinstance(child, Linear) and name not in ("eh_proj", "lm_head"):
                setattr(parent, name, Fp8Linear(child.in_features, child.out_features, block))
            elif isinstance(child, Embedding):
                child.__class__ = _Bf16Embedding


def targets(model: CausalLM) -> dict[str, tuple[Tensor, Tensor]]:
    """{official name of an FP8 weight: (its codes [o, i], its scales [p, q])}, views that a reader fills; experts one by one."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Fp8Linear):
            found[f"{name}.weight"] = module.codes, module.scale_inv
        elif isinstance(module, Fp8GroupedLinear):
            stem = name.rpartition(".")[0]
            names = ("gate_proj", "up_proj") if module.parts == 2 else ("down_proj",)
            rows = module.out_features // module.parts
            for expert in range(module.num_groups):
                for part, projection in enumerate(names):
                    piece = module.codes[expert, part * rows : (part + 1) * rows]
                    found[f"{stem}.{expert}.{projection}.weight"] = piece, module.scale_inv[expert, part]
    return found


@torch.no_grad()
def fill_random(model: CausalLM, seed: int = 0, std: float = 0.006) -> None:
    """Random weights in memory: codes without NaN, scales that give about the report's standard deviation, norms one, biases zero."""
    generator = torch.Generator().manual_seed(seed)
    rms = float(
        fp8.dequantize(torch.arange(256, dtype=torch.uint8).view(1, 256), torch.ones(1, 1), (1, 256), dtype=torch.float32)
        .nan_to_num()
        .square()
        .mean()
        .sqrt()
    )
    for module in model.modules():
        if isinstance(module, (Fp8Linear, Fp8GroupedLinear)):
            flat = module.codes.view(-1)
            whole = flat[: len(flat) // 8 * 8].view(torch.int64)
            for at in range(0, len(whole), 1 << 23):
                whole[at : at + (1 << 23)].random_(-(2**63), None, generator=generator)
            flat[len(flat) // 8 * 8 :].random_(0, 256, generator=generator)
            for at in range(0, len(flat), 1 << 26):
                part = flat[at : at + (1 << 26)]
                part.masked_fill_((part & 0x7F) == 0x7F, 0)  # the two NaN codes
            module.scale_inv.fill_(std / rms)
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                for at in range(0, len(parameter), 4096):
                    parameter[at : at + 4096].normal_(0.0, std, generator=generator)
