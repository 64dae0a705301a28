"""Engine against transformers' generate on one folder, and against itself: start, decoding at batch 1, 16 and 64, drafts, cached prefixes.

    python benchmarks/serve.py --config nano --peer transformers
    python benchmarks/serve.py --config mini --only mtp                 # drafts alone
    python benchmarks/serve.py --config runs/laptop                     # a run's or a model's folder: drafts of trained modules
    python benchmarks/serve.py --config mini --device cuda              # model, cache and peer on a GPU, in BF16

One JSON line per `what`; a configuration's weights are random, so its drafts are as good as chance. `decode_batch1_eager` keeps to PyTorch
where the others use the compiled step; `path` says which one ran. For `mtp` the peer is our own plain decoding; r2 and rd are the costs of a
two-row step and of a draft in the same call over a one-row step, p the share of accepted drafts, `bound` (1 + p) / (r2 + rd), `share_of_bound` the ratio over
it. `mtp_all_right` and `mtp_none_right` make the same drafts at the same cost and put the right or a wrong token in their place, forced and
with `auto`. A folder is decoded after eight prompts that its model wrote itself. `value` and `peer` are tokens per second, a prompt of 32
tokens included; seconds for start and prefix. The lines about drafts count decoding alone, from each answer's first token on, since that is
what r2 and rd are costs of; `ratio_with_prompt` counts the prompt, too.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch

from rorqual.checkpoint import writer
from rorqual.errors import RorqualError
from rorqual.inference.engine import Engine
from rorqual.inference.gpu import device_for
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.kernels.decode import DecodeStep, Draws, Rows, whole
from rorqual.model.transformer import CausalLM

TOKENS = 48

START = """
import sys
from rorqual.checkpoint import hf
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
device = sys.argv[2]
LLM.from_model(hf.load(sys.argv[1], weights="fp32" if device == "cpu" else "bf16", device=device)[0]).generate([5, 6, 7], SamplingParams(max_tokens=1, temperature=0))
"""


def prompts(model: CausalLM, count: int, length: int) -> list[list[int]]:
    """Reproducible prompts."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(2, model.config.vocab_size, (count, length), generator=generator).tolist()


def written(model: CausalLM, count: int, length: int) -> list[list[int]]:
    """What the model writes at temperature 1 after the token that begins a document."""
    first = model.config.bos_token_id if model.config.bos_token_id is not None else model.config.eos_token_id
    llm = LLM.from_model(model, speculative=0)
    params = [SamplingParams(max_tokens=length - 1, temperature=1.0, seed=seed, ignore_eos=True) for seed in range(count)]
    return [[first, *result.outputs[0].token_ids] for result in llm.generate([[first]] * count, params)]


def decode(
    model: CausalLM, given: list[list[int]], tokens: int, speculative: str | int, compiled: bool = True, at_once: int | None = None
) -> tuple[Callable[[], float], Engine]:
    """(a call that answers the prompts without cached prefixes, all or `at_once` of them at a time, and gives the seconds of the steps
    without a prompt; its engine)."""
    blocks = len(given) * -(-(34 + tokens) // 16)
    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
    engine = Engine(model, speculative=speculative, max_num_seqs=at_once or len(given), num_blocks=blocks, compiled=compiled)

    def call() -> float:
        engine.pool.forget()
        for number, ids in enumerate(given):
            engine.add_request(str(number), ids, params)
        decoding, begun = 0.0, set()
        while engine.has_work:
            start = time.perf_counter()
            outs = engine.step()
            took = time.perf_counter() - start
            if begun.issuperset(out.request_id for out in outs):
                decoding += took
            begun.update(out.request_id for out in outs)
        return decoding

    return call, engine


def judged(model: CausalLM, speculative: str | int, right: bool) -> tuple[Callable[[], float], Engine]:
    """`decode` of one prompt whose drafts, made at their usual cost, are replaced by what the target will say, or by another token."""
    given = prompts(model, 1, 32)
    call, engine = decode(model, given, TOKENS, speculative)
    plain, teacher = decode(model, given, TOKENS, 0)
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
    return engine.runner.path


def step_costs(model: CausalLM, seconds: float) -> tuple[float, float]:
    """(two-row step, one draft) over a one-row step, heads and draws included, medians of alternating runs; (nan, nan) without the compiled step.

    The engine makes a step and the next draft in one call: the draft costs what that call takes over a two-row step.
    """
    _, engine = decode(model, prompts(model, 2, 32), 16, 1)
    step, storage, width = engine.runner._step, engine.storage.values, model.config.vocab_size
    if not isinstance(step, DecodeStep):
        return float("nan"), float("nan")

    def rows(count: int) -> tuple[Rows, Draws]:
        made = Rows(whole([5, 6][:count]), whole([40, 41][:count]), whole([0] * count), whole([0, 1, 2]))
        return made, Draws(whole(range(count)), whole([0] * count), array("d", [0.0] * count), width)

    (one_row, one_draw), (two_rows, two_draws) = rows(1), rows(2)
    runs = (lambda: step.forward(one_row, storage, one_draw), lambda: step.forward(two_rows, storage, two_draws),
            lambda: step.advance([40, 2, 0, 5, 6, 0, 0, 0], [0, 1, 2], [0.0], 42, width, storage))  # fmt: skip
    times: list[list[float]] = [[], [], []]
    began = time.perf_counter()
    while len(times[0]) < 20 or time.perf_counter() - began < seconds:
        for run, into in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            into.append(time.perf_counter() - start)
    one, two, both = (sorted(values)[len(values) // 2] for values in times)
    return two / one, (both - two) / one


def peer_decode(folder: Path, model: CausalLM, batch: int, tokens: int) -> Callable[[], object]:
    """The same by transformers' generate, in the model's type on its device."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    weight = model.head_weight
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=weight.dtype).to(weight.device)
    ids = torch.tensor(prompts(model, batch, 32), device=weight.device)
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


def compare(what: str, mode: str | int, drafting: tuple[Callable[[], float], Engine], plain: Callable[[], float], answers: int, tokens: int,
            costs: tuple[float, float], seconds: float) -> None:  # fmt: skip
    """One line: decoding `answers` of so many tokens with drafts against plain decoding."""
    (call, engine), (r2, rd) = drafting, costs
    decoding: tuple[list[float], list[float]] = ([], [])
    whole_ours, whole_theirs = common.alternate(lambda: decoding[0].append(call()), lambda: decoding[1].append(plain()), seconds)
    ours, theirs = (times[1:] for times in decoding)  # without the warm-up
    p = engine.stats.accepted / max(engine.stats.drafts, 1)
    ratio, bound, made = common.paired_ratio(ours, theirs), (1 + p) / (r2 + rd), answers * (tokens - 1)
    common.emit(what, made / min(ours), made / min(theirs), ratio, mode="auto" if mode == "auto" else "forced", path=path_of(engine), r2=r2, rd=rd,
                p=p, bound=bound, share_of_bound=ratio / bound, ratio_with_prompt=common.paired_ratio(whole_ours, whole_theirs))  # fmt: skip


def random_drafts(model: CausalLM, seconds: float) -> None:
    """The `mtp` lines of a model with random weights."""
    if not model.config.num_nextn_predict_layers:
        return
    costs, given = step_costs(model, 1.0), prompts(model, 1, 32)
    plain = decode(model, given, TOKENS, 0)[0]
    compare("mtp", 1, decode(model, given, TOKENS, 1), plain, 1, TOKENS, costs, seconds)
    for what, right in (("mtp_all_right", True), ("mtp_none_right", False)):
        for mode in (1, "auto"):
            compare(what, mode, judged(model, mode, right), plain, 1, TOKENS, costs, seconds / 2)


def trained_drafts(model: CausalLM, seconds: float) -> None:
    """The `mtp` lines of a trained model, one answer at a time after prompts of its own."""
    costs, given, tokens = step_costs(model, 1.0), written(model, 8, 32), 64
    plain = decode(model, given, tokens, 0, at_once=1)[0]
    for mode in (1, "auto"):
        compare("mtp", mode, decode(model, given, tokens, mode, at_once=1), plain, len(given), tokens, costs, seconds)


def device_of(name: str) -> str:
    """The device of that name; ends with the reason where there is none."""
    try:
        return device_for(name)
    except RorqualError as error:
        raise SystemExit(f"benchmarks/serve.py: {error}") from None


def main(arguments: list[str] | None = None) -> None:
    """Prints the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano", help="a name of benchmarks/configs, a config.json, or the folder of a run or a model")
    parser.add_argument("--peer", choices=("transformers", "none"), default="transformers")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    parser.add_argument("--only", choices=("mtp",), help="the lines about drafts alone")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda (cuda:1) where there is one")
    args = parser.parse_args(arguments)
    device = device_of(args.device)
    if Path(args.config).is_dir():
        from rorqual.cli.model_folder import load_folder

        trained_drafts(load_folder(Path(args.config), device=device).model, args.seconds)
        return
    model = CausalLM(common.load_config(args.config))
    model.init_weights(0)
    on_cpu = model
    if device != "cpu":
        model = copy.deepcopy(model).to(device, torch.bfloat16)
    if args.only == "mtp":
        random_drafts(model, args.seconds)
        return
    with tempfile.TemporaryDirectory() as made:
        folder = writer.export(on_cpu, None, Path(made) / "model")
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", START, str(folder), device], check=True)
        common.emit("start_seconds", time.perf_counter() - began, None, None)
        for what, batch, compiled in (("decode_batch1", 1, True), ("decode_batch1_eager", 1, False), ("decode_batch16", 16, True)):
            peer = None if args.peer == "none" else peer_decode(folder, model, batch, TOKENS)
            call, engine = decode(model, prompts(model, batch, 32), TOKENS, 0, compiled)
            ours, theirs = common.alternate(call, peer, args.seconds)
            ratio = common.paired_ratio(ours, theirs) if theirs else None
            common.emit(what, batch * TOKENS / min(ours), batch * TOKENS / min(theirs) if theirs else None, ratio, path=path_of(engine))
    call, engine = decode(model, prompts(model, 64, 32), TOKENS, 0)
    ours, _ = common.alternate(call, None, args.seconds)
    common.emit("decode_batch64", 64 * TOKENS / min(ours), None, None, path=path_of(engine))
    random_drafts(model, args.seconds)
    seconds, share = prefix_ttft(model)
    common.emit("prefix_ttft", seconds, None, None, share_of_cold=share)


if __name__ == "__main__":
    main()
