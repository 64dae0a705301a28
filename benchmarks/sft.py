"""Fine-tuning's step against pre-training's on the same shapes, and how much of a packed row is text.

    python benchmarks/sft.py --config nano

`sft_tokens_per_second`: train_step on isolated, packed samples (value) and on plain rows (peer), same model, rows, width, micro-batch and
optimiser, alternating in one process. `packing_efficiency`: share of places that hold a token, for 5,000 samples of log-normal length
(median 300 tokens, at most the row) in rows of 4,096, for worked arithmetic in rows of 256, and for the examples of the `laptop` recipe in its rows.
`render_tokens_per_second`: conversations to tokens and masks, one process.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time

import numpy as np
import torch
from common import alternate, emit, load_config, paired_ratio

from rorqual.model.transformer import CausalLM
from rorqual.posttrain import arithmetic, packing, sft_data
from rorqual.posttrain.sft_config import RenderConfig
from rorqual.recipes.post_training import require
from rorqual.tokenizer import bpe
from rorqual.train.hyperparams import OptimizerConfig
from rorqual.train.optim import AdamW
from rorqual.train.trainer import Batch, train_step


def samples(lengths: list[int], vocab: int) -> sft_data.Samples:
    """Samples of these lengths with random ids; the second half of each is learned."""
    draw = np.random.default_rng(0)
    codes = []
    for length in lengths:
        ids = draw.integers(3, vocab, size=length).astype(np.int32)
        codes.append(np.where(np.arange(length) < length // 2, ~ids, ids))
    return sft_data.Samples(np.concatenate(codes), np.cumsum([0, *lengths]).astype(np.int64))


def step_against_pretraining(config_name: str, rows: int, width: int, sample: int, seconds: float) -> None:
    """Tokens per second of both steps, all places counted; samples of about `sample` tokens fill the rows."""
    config = load_config(config_name)
    draw = random.Random(0)
    lengths: list[int] = []
    for _ in range(rows):  # full rows, so that both steps have the same number of tokens
        left = width
        while left > 0:
            places = min(left, max(8, int(draw.lognormvariate(np.log(sample), 0.6))))
            places = left if left - places < 8 else places
            lengths.append(places + 1)
            left -= places
    held = samples(lengths, config.vocab_size)
    packed = packing.fill(held, packing.pack(held.all_places(), width))
    segments = torch.from_numpy(packed.segment_ids)
    isolated = Batch(torch.from_numpy(packed.input_ids), torch.from_numpy(packed.targets), segments, segments >= 0)
    plain = Batch(isolated.input_ids, torch.roll(isolated.input_ids, -1, 1))
    calls = []
    for batch in (isolated, plain):
        model = CausalLM(config)
        model.init_weights(0)
        optimizer = AdamW(model.named_parameters(), OptimizerConfig())
        calls.append(lambda model=model, optimizer=optimizer, batch=batch: train_step(
            model, optimizer, batch, micro_batch=rows, learning_rate=1e-5, bias_update_speed=0.0, mtp_loss_weight=0.1, aux_loss_alpha=1e-4,
        ))  # fmt: skip
    ours, peer = alternate(*calls, seconds)
    tokens = isolated.input_ids.numel()
    emit("sft_tokens_per_second", tokens / min(ours), tokens / min(peer), paired_ratio(ours, peer), config=config_name, rows=rows, width=width,
         samples=len(lengths), steps=len(ours), peer_name="pre-training's step")  # fmt: skip


def packing_efficiency() -> None:
    """Share of places that hold a token, for long and for short samples."""
    draw = random.Random(0)
    long = [min(4096, max(8, int(draw.lognormvariate(np.log(300), 0.9)))) + 1 for _ in range(5000)]
    with tempfile.TemporaryDirectory() as folder:
        made = arithmetic.draw("sft", 3000)
        tokenizer = bpe.train([one.question + "\n".join(one.steps) for one in made[:300]], 2048, folder)
        start = time.perf_counter()
        found = [next(sft_data.samples_of(one.conversation(), tokenizer, RenderConfig(style="r1"))) for one in made]
        seconds = time.perf_counter() - start
        course = require("laptop")
        files = arithmetic.write_sets(
            folder, sft=course.sft_samples, rl=1, heldout=1, kinds=course.kinds, max_digits=course.max_digits, working=course.working,
            short_percent=course.short_percent,
        )  # fmt: skip
        lines = files["sft"].read_text(encoding="utf-8").splitlines()
        own = [len(next(sft_data.samples_of(json.loads(line), tokenizer, course.sft.render)).ids) for line in lines]
    short = [len(one.ids) for one in found]
    for name, lengths, width in (
        ("log-normal", long, 4096), ("worked arithmetic", [n for n in short if n <= 257], 256), ("laptop", own, course.sft.render.max_tokens),
    ):  # fmt: skip
        start = time.perf_counter()
        rows = packing.pack([length - 1 for length in lengths], width)
        emit("packing_efficiency", sum(lengths) / (len(rows) * width) - len(lengths) / (len(rows) * width), None, None, lengths=name, width=width,
             samples=len(lengths), rows=len(rows), seconds=time.perf_counter() - start)  # fmt: skip
    emit("render_tokens_per_second", sum(short) / seconds, None, None, samples=len(found))


def main() -> None:
    """All figures as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano", help="a name of benchmarks/configs, or a config.json (default: nano)")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--sample", type=int, default=60, help="median length of a sample")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    packing_efficiency()
    step_against_pretraining(args.config, args.rows, args.width, args.sample, args.seconds)


if __name__ == "__main__":
    main()
