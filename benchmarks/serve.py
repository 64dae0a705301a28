"""Engine against transformers' generate on one folder, and against itself: start, decoding at batch 1, 16 and 64, drafts, cached prefixes.

    python benchmarks/serve.py --config nano --peer transformers

One JSON line per `what`; weights are random, so drafts are as good as chance. `decode_batch1` and `decode_batch1_eager` are the same
PyTorch path. For `mtp` the peer is our own plain decoding; `value` and `peer` are tokens per second, seconds for the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

from rorqual.checkpoint import writer
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.model.transformer import CausalLM

START = """
import sys
from rorqual.checkpoint import hf
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
LLM.from_model(hf.load(sys.argv[1])[0]).generate([5, 6, 7], SamplingParams(max_tokens=1, temperature=0))
"""


def prompts(model: CausalLM, count: int, length: int) -> list[list[int]]:
    """Reproducible prompts."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(2, model.config.vocab_size, (count, length), generator=generator).tolist()


def decode(model: CausalLM, batch: int, tokens: int, speculative: int) -> Callable[[], object]:
    """A call that answers `batch` prompts of 32 tokens."""
    blocks = batch * -(-(32 + tokens) // 16)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)

    def call() -> None:
        engine = Engine(model, speculative=speculative, max_num_seqs=batch, num_blocks=blocks)  # new: no prefix is cached
        for number, ids in enumerate(prompts(model, batch, 32)):
            engine.add_request(str(number), ids, params)
        while engine.has_work:
            engine.step()

    return call


def peer_decode(folder: Path, model: CausalLM, batch: int, tokens: int) -> Callable[[], object]:
    """The same by transformers' generate, in FP32."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor(prompts(model, batch, 32))
    settings: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    def call() -> None:
        with torch.no_grad():
            peer.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    return call


def prefix_ttft(model: CausalLM) -> tuple[float, float]:
    """(seconds to the first token with 90 % of the prompt cached, share of the cold one's)."""
    length = min(512, model.config.max_position_embeddings - 8)
    cold, warm = [], []
    for seed in range(3):
        engine = Engine(model, speculative=0, max_num_seqs=2)
        first = torch.randint(2, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
        other = first[: length * 9 // 10] + prompts(model, 1, length - length * 9 // 10)[0]
        for number, (ids, into) in enumerate(((first, cold), (other, warm))):
            began = time.perf_counter()
            engine.add_request(str(number), ids, SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
            while engine.has_work:
                engine.step()
            into.append(time.perf_counter() - began)
    return min(warm), min(warm) / min(cold)


def main() -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--peer", choices=("transformers", "none"), default="transformers")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    args = parser.parse_args()
    model = CausalLM(common.load_config(args.config))
    model.init_weights(0)
    with tempfile.TemporaryDirectory() as made:
        folder = writer.export(model, None, Path(made) / "model")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", START, str(folder)], check=True)
        common.emit("start_seconds", time.perf_counter() - began, None, None)
        for batch, tokens, whats in ((1, 16, ("decode_batch1", "decode_batch1_eager")), (16, 16, ("decode_batch16",))):
            peer = None if args.peer == "none" else peer_decode(folder, model, batch, tokens)
            ours, theirs = common.alternate(decode(model, batch, tokens, 0), peer, args.seconds)
            rate = batch * tokens / min(ours)
            ratio = common.paired_ratio(ours, theirs) if theirs else None
            for what in whats:
                common.emit(what, rate, batch * tokens / min(theirs) if theirs else None, ratio, path="torch")
    ours, _ = common.alternate(decode(model, 64, 16, 0), None, args.seconds)
    common.emit("decode_batch64", 64 * 16 / min(ours), None, None, path="torch")
    if model.config.num_nextn_predict_layers:
        ours, plain = common.alternate(decode(model, 1, 16, 1), decode(model, 1, 16, 0), args.seconds)
        common.emit("mtp", 16 / min(ours), 16 / min(plain), common.paired_ratio(ours, plain), path="torch")
    seconds, share = prefix_ttft(model)
    common.emit("prefix_ttft", seconds, None, None, share_of_cold=share)


if __name__ == "__main__":
    main()
