"""Training step (forward, backward, clip-free AdamW) against a peer: same weights, batch, dtype, threads, one process, alternating.

    python benchmarks/train.py --config nano --peer transformers

Peers: transformers (DeepseekV3ForCausalLM, the faster of its eager experts implementations), compiled (the same under
torch.compile; its first step takes minutes), torchtitan (titan.py says how it is installed), dense (transformers' Llama of equal active
size), none. MTP, EMA and metrics are off. Our trainer keeps freed memory, which is a matter of the whole process: `--keep-freed` does
so here, for both sides.
The share of the ceiling counts 6 FLOP per active matmul parameter and token plus attention, over the FP32 GEMM rate
measured before and after in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import alternate, emit, load_config, paired_ratio

from rorqual.checkpoint import hf
from rorqual.config import ModelConfig
from rorqual.kernels import memory, ops
from rorqual.kernels.measure import gemm_gflops
from rorqual.model.transformer import CausalLM
from rorqual.planner.flops import train_flops_per_token
from rorqual.planner.params import count
from rorqual.train.loss import compute_loss

CONSTANTS = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 1.0}


def our_step(model: CausalLM, ids: torch.Tensor, losses: list[float]) -> Callable[[], None]:
    """One optimiser step of ours."""
    state = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()]
    step = 0

    def run() -> None:
        nonlocal step
        step += 1
        loss = compute_loss(model, ids[:, :-1], ids[:, 1:], num_targets=ids[:, 1:].numel(), mtp_loss_weight=0.0, aux_loss_alpha=0.0).loss
        loss.backward()
        with torch.no_grad():
            for parameter, first, second in state:
                ops.adamw(parameter, parameter.grad, first, second, step=step, **CONSTANTS)
                parameter.grad = None
        losses.append(float(loss.detach()))

    return run


def peer_step(model: torch.nn.Module, ids: torch.Tensor, losses: list[float], compile_: bool) -> Callable[[], None]:
    """One optimiser step of a transformers model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    call = torch.compile(model) if compile_ else model

    def run() -> None:
        out = call(input_ids=ids[:, :-1], use_cache=False)
        logits = out if isinstance(out, torch.Tensor) else out.logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))

    return run


def transformers_peer(model: CausalLM, ids: torch.Tensor) -> tuple[torch.nn.Module, str]:
    """transformers' class on our weights, with whichever eager experts implementation steps faster here."""
    from transformers import DeepseekV3ForCausalLM

    best: tuple[float, torch.nn.Module, str] | None = None
    with tempfile.TemporaryDirectory() as folder:
        hf.export(model, None, Path(folder) / "model")
        for experts in ("grouped_mm", "eager"):
            peer = DeepseekV3ForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=torch.float32, experts_implementation=experts
            ).train()
            run = peer_step(peer, ids[:1], [], False)
            run()
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
            peer = DeepseekV3ForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=torch.float32, experts_implementation=experts
            ).train()
            if best is None or seconds < best[0]:
                best = (seconds, peer, experts)
    assert best is not None
    return best[1], best[2]


def dense_peer(config: ModelConfig) -> tuple[torch.nn.Module, str]:
    """transformers' Llama with the same active matmul parameters: what MLA and the experts cost on top."""
    from transformers import LlamaConfig, LlamaForCausalLM

    d, layers = config.hidden_size, config.num_hidden_layers
    heads = d // 32 if d < 768 else d // 64
    width = (count(config).matmul - d * config.vocab_size) / layers - 4 * d * d
    width = max(16, round(width / 3 / d / 16) * 16)
    llama = LlamaConfig(vocab_size=config.vocab_size, hidden_size=d, intermediate_size=width, num_hidden_layers=layers, num_attention_heads=heads,
                        max_position_embeddings=config.max_position_embeddings)  # fmt: skip
    return LlamaForCausalLM(llama).train(), f"Llama, FFN {width}"


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano", help="nano, micro, mini or a config.json")
    parser.add_argument("--peer", default="transformers", choices=("transformers", "compiled", "torchtitan", "dense", "none"))
    parser.add_argument("--seconds", type=float, default=25.0, help="time for the alternating steps")
    parser.add_argument("--batch", type=int, help="sequences; 8, or 2 for mini")
    parser.add_argument("--length", type=int, help="tokens per sequence; 256, or 512 for mini")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--keep-freed", action="store_true", help="kernels.memory.keep_freed, as in a run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or min(2, torch.get_num_threads()))
    if args.keep_freed:
        memory.keep_freed()
    torch.manual_seed(0)
    config = load_config(args.config).with_(num_nextn_predict_layers=0)
    batch, length = args.batch or (2 if args.config == "mini" else 8), args.length or (512 if args.config == "mini" else 256)
    ids = torch.randint(3, config.vocab_size, (batch, length + 1))
    model = CausalLM(config)
    model.init_weights(0)
    peer, detail = None, None
    if args.peer in ("transformers", "compiled"):
        peer, detail = transformers_peer(model, ids)
    elif args.peer == "dense":
        peer, detail = dense_peer(config)
    elif args.peer == "torchtitan":
        from titan import titan_peer

        peer, detail = titan_peer(config)
    ours: list[float] = []
    theirs: list[float] = []
    before = gemm_gflops(1.0)
    run_peer = None if peer is None else peer_step(peer, ids, theirs, args.peer == "compiled")
    our_times, peer_times = alternate(our_step(model, ids, ours), run_peer, args.seconds)
    ceiling = max(before, gemm_gflops(1.0))
    tokens = batch * length
    flop = train_flops_per_token(config, length) * tokens
    seconds, peer_seconds = statistics.median(our_times), statistics.median(peer_times) if peer_times else None
    tags = {
        "config": args.config,
        "peer_name": args.peer,
        "peer_detail": detail,
        "batch": batch,
        "length": length,
        "steps": len(our_times),
        "keep_freed": args.keep_freed,
    }
    ratio = paired_ratio(our_times, peer_times) if peer_times else None
    emit("train_tokens_per_second", tokens / seconds, tokens / peer_seconds if peer_seconds else None, ratio, **tags)
    emit("gemm_gflops", ceiling, None, None, **tags)
    peer_share = flop / peer_seconds / 1e9 / ceiling if peer_seconds and args.peer != "dense" else None
    emit("share_of_gemm_ceiling", flop / seconds / 1e9 / ceiling, peer_share, ratio if peer_share else None, **tags)
    if args.peer in ("transformers", "compiled"):
        emit("first_loss", ours[0], theirs[0], ours[0] / theirs[0], **tags)


if __name__ == "__main__":
    main()
