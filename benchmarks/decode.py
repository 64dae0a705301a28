"""The compiled decode step alone: microseconds for n rows, the cost of a second row, tokens a second, share of the read bandwidth.

    python benchmarks/decode.py --configs nano,micro,mini --rows 1,2,4,16,64

Each row is a sequence of its own with 128 cached positions; the head is included. Weights are random.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import emit, load_config

from rorqual.kernels.decode import DecodeStep, usable
from rorqual.kernels.measure import memory_gbps
from rorqual.model.transformer import CausalLM

CONTEXT, BLOCK = 128, 16


def main() -> None:
    """Prints one JSON line per configuration and number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default="nano,micro,mini")
    parser.add_argument("--rows", default="1,2,4,16,64")
    parser.add_argument("--weights", default="fp32", choices=("fp32", "bf16", "fp16", "int8"), help="how matrices are kept")
    parser.add_argument("--seconds", type=float, default=1.0, help="per figure")
    args = parser.parse_args()
    bandwidth = memory_gbps(1.0)
    for name in args.configs.split(","):
        config = load_config(name)
        model = CausalLM(config)
        model.init_weights(0)
        tensors = dict(model.state_dict())
        reason = usable(config, tensors)
        if reason is not None:
            raise SystemExit(f"the compiled step cannot run: {reason}")
        step = DecodeStep(config, tensors, model.rope.inv_freq, model.rope.amplitude, model.rope.softmax_scale, args.weights)
        alone = 0.0
        for rows in map(int, args.rows.split(",")):
            blocks = CONTEXT // BLOCK + 1
            storage = torch.zeros(config.num_blocks, rows * blocks, BLOCK, config.kv_lora_rank + config.qk_rope_head_dim)
            tables = torch.arange(rows * blocks).view(rows, blocks)
            ids, positions = torch.arange(rows) % config.vocab_size, torch.full((rows,), CONTEXT)
            times: list[float] = []
            began = time.perf_counter()
            while len(times) < 5 or time.perf_counter() - began < args.seconds:
                start = time.perf_counter()
                step.logits(step.trunk(ids, positions, tables, storage))
                times.append(time.perf_counter() - start)
            seconds = sorted(times)[len(times) // 2]
            alone = alone or seconds
            read = 4.0 * sum(v.numel() for k, v in tensors.items() if "layers." not in k or int(k.split(".")[2]) < config.num_hidden_layers)
            emit("decode_step_us", seconds * 1e6, None, None, config=name, rows=rows, best_us=min(times) * 1e6, tokens_per_second=rows / seconds,
                 over_one_row=seconds / alone, weight_bytes=read, read_gbps=bandwidth)  # fmt: skip


if __name__ == "__main__":
    main()
