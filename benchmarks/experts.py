"""Routed experts alone, forward and backward, against F.grouped_mm on the same sorted rows: milliseconds per layer.

    python benchmarks/experts.py --configs nano,micro,mini --tokens 2048

Ours is one autograd function over the three GEMMs of GroupedLinear; the peer is the usual composition of two grouped GEMMs and
SwiGLU under autograd. Sorting, gathering and combining are timed with both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from common import alternate, emit, load_config, paired_ratio
from torch.nn import functional as F

from rorqual.kernels.measure import gemm_gflops
from rorqual.model.moe import Dispatcher, Experts
from rorqual.model.router import Routing


def ours(experts: Experts, x: torch.Tensor, routing: Routing, count: int) -> torch.Tensor:
    """Dispatch, fused experts, combine."""
    dispatcher = Dispatcher()
    sent = dispatcher.dispatch(x, routing, count)
    return dispatcher.combine(experts(sent.rows, sent.offs), sent)


def grouped(experts: Experts, x: torch.Tensor, routing: Routing, count: int) -> torch.Tensor:
    """The library's grouped GEMM under autograd, sorted and combined with torch operations."""
    flat = routing.indices.reshape(-1)
    order = flat.argsort(stable=True)
    offs = torch.bincount(flat, minlength=count).cumsum(0).to(torch.int32)
    rows = x[order // routing.indices.shape[1]]
    gate, up = F.grouped_mm(rows, experts.gate_up_proj.weight.transpose(-2, -1), offs=offs).chunk(2, dim=-1)
    out = F.grouped_mm(F.silu(gate) * up, experts.down_proj.weight.transpose(-2, -1), offs=offs)
    back = torch.empty_like(out).index_copy(0, order, out).view(*routing.indices.shape, -1)
    return (back * routing.weights.unsqueeze(-1)).sum(dim=1)


def main() -> None:
    """Prints one JSON line per configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="nano,micro,mini")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=10.0, help="per configuration")
    args = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    ceiling = gemm_gflops(1.0)
    for name in args.configs.split(","):
        config = load_config(name)
        generator = torch.Generator().manual_seed(1)
        experts = Experts(config)
        with torch.no_grad():
            for parameter in experts.parameters():
                parameter.normal_(0.0, 0.02, generator=generator)
        x = torch.randn(args.tokens, config.hidden_size, generator=generator).requires_grad_()
        scores = torch.rand(args.tokens, config.n_routed_experts, generator=generator)
        weights, indices = scores.topk(config.num_experts_per_tok)
        routing = Routing(indices, weights / weights.sum(-1, keepdim=True), scores, indices)
        up = torch.randn(args.tokens, config.hidden_size, generator=generator)
        torch.testing.assert_close(
            ours(experts, x, routing, config.n_routed_experts), grouped(experts, x, routing, config.n_routed_experts), atol=1e-4, rtol=1e-3
        )

        def both(way: Callable[..., torch.Tensor]) -> Callable[[], object]:
            leaves = [x, *experts.parameters()]  # noqa: B023
            return lambda: torch.autograd.grad(way(experts, x, routing, config.n_routed_experts), leaves, up)  # noqa: B023

        our_times, peer_times = alternate(both(ours), both(grouped), args.seconds, least=5, most=200)
        seconds, peer = statistics.median(our_times), statistics.median(peer_times)
        flop = 18 * args.tokens * config.num_experts_per_tok * config.hidden_size * config.moe_intermediate_size
        emit("routed_experts_ms", seconds * 1e3, peer * 1e3, paired_ratio(our_times, peer_times), config=name, tokens=args.tokens, peer_name="F.grouped_mm",
             gflops=flop / seconds / 1e9, gemm_gflops=ceiling, at_ceiling_ms=flop / ceiling / 1e6)  # fmt: skip


if __name__ == "__main__":
    main()
