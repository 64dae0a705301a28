"""Likelihood scoring against lm-evaluation-harness's own `hf` model class: the same tiny model, items, machine and threads.

    python benchmarks/eval.py --data ../shared/data --tasks arc_easy,lambada --limit 200

Needs the extra `eval`, transformers and accelerate. One JSON line per task: `value` and `peer` are items per second of the better of the
alternating runs, `ratio` the median over neighbouring pairs; `tokens` and `peer_tokens` are positions that went through each model,
padding included; `logprob_difference` is the largest over all choices, `same_choice` the share of items with the same answer. The model is
random: a tokenizer of 4,096 ids trained on the data's own text, and the configuration named.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import common
import torch

from rorqual.checkpoint import hf
from rorqual.eval.models import EngineModel, Likelihood
from rorqual.eval.tasks import catalog
from rorqual.inference.engine import Engine
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe


def make(config_name: str, data: Path, root: Path) -> tuple[EngineModel, Path]:
    """The model on an engine, and its folder."""
    text = (data / "tinyshakespeare" / "input.txt").read_text()[:500_000] + (data / "arc" / "arc_easy.jsonl").read_text()[:300_000]
    tokenizer = bpe.train([text], 4096, root / "tokenizer")
    window = {"max_position_embeddings": 4096, "vocab_size": tokenizer.vocab_size}
    ends = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    model = CausalLM(common.load_config(config_name).with_(**window, **ends, num_nextn_predict_layers=0))
    model.init_weights(0)
    folder = hf.export(model, root / "tokenizer", root / "model")
    return EngineModel(Engine(model, tokenizer, speculative=0), tokenizer, config_name), folder


class Peer:
    """lm-eval's HFLM with a counter of the positions it runs."""

    def __init__(self, folder: Path, batch_size: int) -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<｜end▁of▁sentence｜>")
        tokenizer.pad_token = tokenizer.eos_token
        self.lm, self.tokens = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", max_length=4096), 0
        inner = self.lm._model_call

        def counted(inputs: Any, *rest: Any, **named: Any) -> Any:
            self.tokens += inputs.numel()
            return inner(inputs, *rest, **named)

        self.lm._model_call = counted

    def score(self, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Log-probabilities of all pairs."""
        from lm_eval.api.instance import Instance

        requests = [Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=number) for number, pair in enumerate(pairs)]
        return self.lm.loglikelihood(requests, disable_tqdm=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", default="arc_easy,lambada")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--batch-size", type=int, default=16, help="of lm-eval's class")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as root:
        ours, folder = make(args.config, args.data, Path(root))
        peer = Peer(folder, args.batch_size)
        for name in args.tasks.split(","):
            items = catalog.task(name).items(args.data, args.shots, args.limit)
            pairs = [pair for item in items for pair in item.pairs]
            before, peer.tokens = ours.computed(), 0
            mine = [one for one in ours.likelihood(pairs) if isinstance(one, Likelihood)]
            theirs, after = peer.score(pairs), ours.computed()
            tokens, peer_tokens = sum(after[key] - before[key] for key in ("tokens", "padding")), peer.tokens
            at, same = 0, 0
            for item in items:
                best = [max(range(len(item.pairs)), key=lambda n, v=values: v[n]) for values in ([one.logprob for one in mine[at : at + len(item.pairs)]], [one[0] for one in theirs[at : at + len(item.pairs)]])]  # fmt: skip
                same += best[0] == best[1]
                at += len(item.pairs)
            first, second = common.alternate(lambda p=pairs: ours.likelihood(p), lambda p=pairs: peer.score(p), args.seconds)
            common.emit(
                f"likelihood_{name}", len(items) / min(first), len(items) / min(second), common.paired_ratio(first, second),
                unit="items/s", peer_name="lm-eval hf", items=len(items), shots=args.shots, config=args.config, batch_size=args.batch_size,
                tokens=tokens, peer_tokens=peer_tokens, same_choice=same / len(items),
                logprob_difference=max(abs(one.logprob - other[0]) for one, other in zip(mine, theirs, strict=True)),
            )  # fmt: skip


if __name__ == "__main__":
    main()
