"""A run folder like the trainer's, made of formulas: for the report's tests, and for looking at the page."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any

from rorqual.config import ModelConfig
from rorqual.planner.flops import train_flops_per_token
from rorqual.planner.params import count
from rorqual.train.records import to_plain

HOSTILE = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>\u202eabc\x00&amp;\ud800'

MODEL = ModelConfig(
    vocab_size=4096, hidden_size=192, num_hidden_layers=6, first_k_dense_replace=1, intermediate_size=512, moe_intermediate_size=64,
    n_routed_experts=16, num_experts_per_tok=4, n_group=4, topk_group=2, num_attention_heads=6, q_lora_rank=96, kv_lora_rank=64,
    qk_nope_head_dim=32, qk_rope_head_dim=16, v_head_dim=32, max_position_embeddings=1024, initializer_range=0.02,
)  # fmt: skip

_CODE = (
    "def fibonacci(n):\n",
    ("    e the  self.s(se  )\n  i = n the\n\n = = a o_ f", "    self.name = name\n    if self is None:\n        return self\n    self.n = n\n",
     "    \"\"\"Return the number of the n.\"\"\"\n    if n < 0:\n        raise ValueError(\"n must be positive\")\n    return n + 1\n",
     "    \"\"\"Return the nth number of the sequence.\"\"\"\n    if n < 2:\n        return n\n    a, b = 0, 1\n    for i in range(n):\n        a, b = b, a + b\n    return a\n"),
)  # fmt: skip
_SUM = ("Question: What is 17 + 25?\n", ("An1 2 : w", "Answer: 17 + 2 = 35\n", "Answer: 17 + 25 = 32\n", "Answer: 17 + 25 = 42\n"))


def make(folder: Path, steps: int = 400, hostile: bool = True, seed: int = 1) -> Path:
    """Writes config.json, metrics.jsonl, results.json and lineage.json; `hostile` adds text that tries to leave its place."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = list(_metrics(steps, rng))
    if hostile:
        lines.append({"kind": "sample", "step": steps, "prompt": HOSTILE, "text": HOSTILE + HOSTILE})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    _write(folder / "config.json", _config(steps, hostile))
    _write(folder / "results.json", _results(steps, hostile))
    _write(folder / "lineage.json", {"phases": [{"name": "laptop", "from": "random initialisation", "seed": 0}], "code": "rorqual 0.1.0"})
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _metrics(steps: int, rng: random.Random) -> Any:
    layers, experts, batch = len(MODEL.moe_layers), MODEL.n_routed_experts, 16
    yield {"kind": "event", "step": 0, "event": "start", "device": "cpu", "threads": 2}
    skew = [[rng.gauss(0, 0.75) for _ in range(experts)] for _ in range(layers)]
    bias = [[0.0] * experts for _ in range(layers)]
    for step in range(1, steps + 1):
        done, tokens = step / steps, step * batch * 256
        fall = 6.0 * math.exp(-done * 9) + 0.35 * (1 - done) ** 0.5
        main = 2.02 + fall + rng.gauss(0, 0.05)
        gamma = 0.001 if done < 0.95 else 0.0
        load = []
        for layer in range(layers):
            scores = [math.exp(skew[layer][e] * (0.4 + 0.6 * done) + 25 * bias[layer][e] + rng.gauss(0, 0.07)) for e in range(experts)]
            total = batch * 256 * MODEL.num_experts_per_tok
            load.append([round(total * score / sum(scores)) for score in scores])
            mean = sum(load[layer]) / experts
            bias[layer] = [b + 4 * gamma * ((mean > n) - (mean < n)) for b, n in zip(bias[layer], load[layer], strict=True)]
        lr = 3e-3 * min(1, step / 50) * (1 if done < 0.7 else max(0.1, math.cos((done - 0.7) / 0.3 * math.pi / 2)))
        row = {
            "kind": "train", "step": step, "tokens": tokens, "sequences": step * batch, "loss": main + 0.3, "main_loss": main,
            "mtp_loss": main * 1.13 + rng.gauss(0, 0.04), "balance_loss": 1e-4 * (5.02 + rng.random() * 0.02), "lr": lr,
            "grad_norm": 0.25 + 2.2 * math.exp(-done * 14) + abs(rng.gauss(0, 0.04)) + (1.4 if step == steps // 2 else 0), "batch_size": batch,
            "bias_update_speed": gamma, "mtp_loss_weight": 0.3 if done < 0.67 else 0.1, "tokens_per_second": 1980 + rng.gauss(0, 30),
            "share_of_ceiling": 0.61 + rng.gauss(0, 0.01), "memory_bytes": 4.1e8 + 3e7 * done, "skipped_steps": 0, "seconds": 2.07 * step,
            "max_vio": [max(counts) / (sum(counts) / experts) - 1 for counts in load],
            "bias_min": [min(b) for b in bias], "bias_max": [max(b) for b in bias],
        }  # fmt: skip
        if step % max(1, steps // 100) == 0:
            row["load"] = load
        yield row
        if step % max(1, steps // 16) == 0:
            for source, offset in (("code", 0.0), ("prose", 0.62), ("arithmetic", -1.2)):
                loss = 2.06 + fall + offset
                yield {
                    "kind": "validation", "step": step, "tokens": tokens, "source": source, "loss": loss, "bpb": loss * 1.02,
                    "mtp_acceptance": min(0.9, 0.52 - offset * 0.15 - 0.4 * math.exp(-done * 5)), "seconds": 3.1,
                }  # fmt: skip
        if step % max(1, steps // 4) == 0:
            for prompt, texts in (_CODE, _SUM):
                text = texts[min(3, 4 * step // steps - 1)]
                yield {"kind": "sample", "step": step, "tokens": tokens, "prompt": prompt, "text": prompt + text}
    last = {
        "kind": "validation",
        "step": steps,
        "tokens": steps * batch * 256,
        "source": "code",
        "loss": 2.06,
        "mtp_acceptance": 0.483,
        "final": True,
    }
    yield {**last, "bpb": 2.11, "weights": "ema"}
    yield {**last, "bpb": 2.094, "weights": "raw", "sliding": True}
    yield {"kind": "event", "step": steps, "event": "finished"}


def _config(steps: int, hostile: bool) -> dict[str, Any]:
    return {
        "name": "laptop",
        "model": to_plain(MODEL),
        "data": {"sources": {"code": 0.9, "prose": 0.07, "arithmetic": 0.03}, "fim_rate": 0.1, "seed": 0},
        "build": {"inputs": [HOSTILE] if hostile else [], "vocab_size": 4096, "validation_rate": 0.02},
        "train": {
            "total_tokens": steps * 4096, "validation_source": "code", "sequence_length": 256, "micro_batch_sequences": 8, "device": "cpu", "seed": 0,
            "learning_rate": {"peak": 3e-3, "warmup_steps": 50}, "optimizer": {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1},
        },
    }  # fmt: skip


def _results(steps: int, hostile: bool) -> dict[str, Any]:
    parameters, tokens = count(MODEL), steps * 4096

    def split(documents: int, size: int) -> dict[str, int]:
        return {"documents": documents, "bytes": size, "tokens": size // 4}

    sources = {
        "code": {"train": split(3_214, 52_411_220), "validation": split(66, 1_002_118)},
        "prose": {"train": split(1_102, 4_812_900), "validation": split(24, 101_332)},
        (HOSTILE if hostile else "arithmetic"): {"train": split(19_604, 3_120_440), "validation": split(396, 63_020)},
    }
    return {
        "validation_bpb": 2.094, "gzip_bpb": 1.803, "xz_bpb": 1.611, "mtp_acceptance": 0.483, "tokens_per_second": 1981.0, "share_of_ceiling": 0.612,
        "seconds": 868.0, "parameters_total": parameters.total, "parameters_active": parameters.active,
        "train_flops": tokens * train_flops_per_token(MODEL, 256, mtp=True),
        "machine": {"cpu": "Intel Xeon (Skylake)", "cores": 2, "isa": "avx2", "gemm_gflops": 58.4, "memory_gbps": 11.9, "torch": "2.13.0+cpu", "python": "3.11.7", "platform": "Linux x86_64"},
        "stages": [{"name": "tokenizer", "seconds": 9.2}, {"name": "data", "seconds": 31.5}, {"name": "training", "seconds": 768.0},
                   {"name": "validation", "seconds": 41.0}, {"name": "export", "seconds": 4.3}, {"name": "samples", "seconds": 14.0}],
        "data": {"sources": sources, "rejected": {"not UTF-8": 3, "empty": 14, "near-duplicate of a training document": 5}, "duplicates": 212,
                 "epochs": {"code": 0.11, "prose": 0.09, "arithmetic": 0.06}, "fingerprint": "b0c1d2e3f4a5", "vocab_size": 4096},
    }  # fmt: skip


if __name__ == "__main__":
    make(Path(sys.argv[1]), hostile="--plain" not in sys.argv)
