"""Engine against transformers' generate on one folder, and against itself: start, decoding at batch 1, 16 and 64, drafts, cached prefixes.

    python benchmarks/serve.py --config nano --peer transformers

One JSON line per `what`; weights are random, so drafts are as good as chance. `decode_batch1_eager` keeps to PyTorch where the others use
the compiled step; `path` says which one ran. For `mtp` the peer is our own plain decoding; r2 and rd are the costs of a two-row step and of
a draft over a one-row step, p the share of accepted drafts, `bound` (1 + p) / (r2 + rd). `mtp_all_right` and `mtp_none_right` make the same
drafts at the same cost and put the right or a wrong token in their place, forced and with `auto`. `value` and `peer` are tokens per second (a prompt
of 32 tokens included), seconds for start and prefix.
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

TOKENS = 48

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


def decode(model: CausalLM, batch: int, tokens: int, speculative: str | int, compiled: bool = True) -> tuple[Callable[[], object], Engine]:
    """(a call that answers `batch` prompts of 32 tokens without cached prefixes, its engine)."""
    blocks = batch * -(-(34 + tokens) // 16)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    engine = Engine(model, speculative=speculative, max_num_seqs=batch, num_blocks=blocks, compiled=compiled)

    def call() -> None:
        engine.pool.forget()
        for number, ids in enumerate(prompts(model, batch, 32)):
            engine.add_request(str(number), ids, params)
        while engine.has_work:
            engine.step()

    return call, engine


def judged(model: CausalLM, speculative: str | int, right: bool) -> tuple[Callable[[], object], Engine]:
    """`decode` of one prompt whose drafts, made at their usual cost, are replaced by what the target will say, or by another token."""
    call, engine = decode(model, 1, TOKENS, speculative)
    plain, teacher = decode(model, 1, TOKENS, 0)
    answer: list[int] = []
    step, propose = teacher.step, engine.runner.propose

    def recorded() -> Any:
        outs = step()
        answer.extend(token for out in outs for token in out.new_token_ids)
        return outs

    teacher.step = recorded  # type: ignore[method-assign]
    plain()

    def replaced(sequences: list[Any], num_drafts: int) -> list[list[int]]:
        propose(sequences, num_drafts)
        place = len(sequences[0].output)
        return [[answer[place] if right else (answer[place] + 1) % model.config.vocab_size]]

    engine.runner.propose = replaced  # type: ignore[method-assign]
    return call, engine


def path_of(engine: Engine) -> str:
    """Which decode step runs, and why."""
    return "compiled" if engine.runner.why_not is None else f"torch ({engine.runner.why_not})"


def step_costs(model: CausalLM, seconds: float) -> tuple[float, float]:
    """(two-row step, one draft with its head) over a one-row step with its head, medians of alternating runs; (nan, nan) without the compiled step."""
    _, engine = decode(model, 2, 16, 1)
    step = engine.runner._step
    if step is None:
        return float("nan"), float("nan")
    storage, tables, hidden = engine.storage.values, torch.tensor([[0, 1], [0, 1]]), torch.zeros(1, model.config.hidden_size)
    ids, positions = torch.tensor([5, 6]), torch.tensor([16, 17])
    runs = (lambda: step.logits(step.trunk(ids[:1], positions[:1], tables[:1], storage)), lambda: step.logits(step.trunk(ids, positions, tables, storage)),
            lambda: step.logits(step.mtp(0, hidden, ids[:1], positions[:1], tables[:1], storage)))  # fmt: skip
    times: list[list[float]] = [[], [], []]
    began = time.perf_counter()
    while len(times[0]) < 20 or time.perf_counter() - began < seconds:
        for run, into in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            into.append(time.perf_counter() - start)
    one, two, draft = (sorted(values)[len(values) // 2] for values in times)
    return two / one, draft / one


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
        for what, batch, compiled in (("decode_batch1", 1, True), ("decode_batch1_eager", 1, False), ("decode_batch16", 16, True)):
            peer = None if args.peer == "none" else peer_decode(folder, model, batch, TOKENS)
            call, engine = decode(model, batch, TOKENS, 0, compiled)
            ours, theirs = common.alternate(call, peer, args.seconds)
            ratio = common.paired_ratio(ours, theirs) if theirs else None
            common.emit(what, batch * TOKENS / min(ours), batch * TOKENS / min(theirs) if theirs else None, ratio, path=path_of(engine))
    call, engine = decode(model, 64, TOKENS, 0)
    ours, _ = common.alternate(call, None, args.seconds)
    common.emit("decode_batch64", 64 * TOKENS / min(ours), None, None, path=path_of(engine))
    if model.config.num_nextn_predict_layers:
        drafting, engine = decode(model, 1, TOKENS, 1)
        ours, plain = common.alternate(drafting, decode(model, 1, TOKENS, 0)[0], args.seconds)
        r2, rd = step_costs(model, 1.0)
        p = engine.stats.accepted / max(engine.stats.drafts, 1)
        common.emit("mtp", TOKENS / min(ours), TOKENS / min(plain), common.paired_ratio(ours, plain), path=path_of(engine), r2=r2, rd=rd, p=p,
                    bound=(1 + p) / (r2 + rd))  # fmt: skip
        for what, right, mode in (
            ("mtp_all_right", True, 1),
            ("mtp_all_right", True, "auto"),
            ("mtp_none_right", False, 1),
            ("mtp_none_right", False, "auto"),
        ):
            drafting, engine = judged(model, mode, right)
            ours, plain = common.alternate(drafting, decode(model, 1, TOKENS, 0)[0], args.seconds / 2)
            p = engine.stats.accepted / max(engine.stats.drafts, 1)
            common.emit(what, TOKENS / min(ours), TOKENS / min(plain), common.paired_ratio(ours, plain), mode="auto" if mode == "auto" else "forced",
                        p=p, r2=r2, rd=rd, bound=(1 + p) / (r2 + rd), share_of_bound=common.paired_ratio(ours, plain) * (r2 + rd) / (1 + p))  # fmt: skip
    seconds, share = prefix_ttft(model)
    common.emit("prefix_ttft", seconds, None, None, share_of_cold=share)


if __name__ == "__main__":
    main()
