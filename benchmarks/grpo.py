"""A step of GRPO against TRL's GRPOTrainer: same weights, prompts, reward and settings, one process, threads alike.

    python benchmarks/grpo.py --peer trl

A step is one rollout and one update: --prompts questions of --group answers of --new-tokens tokens. Ours is `run_grpo` as users run it, its
answers.jsonl and metrics included; the peer is GRPOTrainer without logging, saving, evaluation or gradient checkpointing, on
transformers' DeepseekV3ForCausalLM. Both are run in turns; figures are medians over all steps but each run's
first. On a quiet machine the default takes about two minutes. Generation and training seconds stand apart; the rest of a step is rewards and bookkeeping.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import emit, load_config

from rorqual.checkpoint import hf
from rorqual.data.synthetic import documents
from rorqual.model.transformer import CausalLM
from rorqual.posttrain import grpo
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problems, problem_of
from rorqual.posttrain.rewards import Outcome
from rorqual.posttrain.rollout import render_prompt
from rorqual.tokenizer import bpe

Seconds = dict[str, list[float]]
CLOCK = time.perf_counter


def reward(ids: list[int]) -> float:
    """Share of even ids: a rule of no cost, with a signal in every group."""
    return sum(token % 2 == 0 for token in ids) / max(1, len(ids))


def ours(folder: Path, problems: Problems, settings: GRPOConfig, out: Path, seconds: Seconds) -> None:
    """Steps of run_grpo; the seconds stand in its metrics."""

    def judge(_problem: Any, answer: Any) -> Outcome:
        return Outcome("right", reward(answer.ids))

    grpo.run_grpo(GRPORun(model=str(folder), grpo=settings, device="cpu"), out, problems=problems, judges={"model": judge}, progress=False)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for row in [row for row in rows if row["kind"] == "train"][1:]:
        seconds["step"].append(row["step_seconds"])
        seconds["generation"].append(row["generation_seconds"])
        seconds["training"].append(row["training_seconds"])


def trl(folder: Path, prompts: list[str], settings: GRPOConfig, steps: int, experts: str, out: Path, seconds: Seconds) -> None:
    """Steps of GRPOTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DeepseekV3ForCausalLM, TrainerCallback
    from trl import GRPOConfig as PeerConfig
    from trl import GRPOTrainer

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began, self.generating = CLOCK(), 0.0

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step >= 1:
                total = CLOCK() - self.began
                seconds["step"].append(total)
                seconds["generation"].append(self.generating)
                seconds["training"].append(total - self.scoring)

    clock = Clock()
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation=experts)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    count = settings.prompts * settings.group
    config = PeerConfig(
        output_dir=str(out), per_device_train_batch_size=count, gradient_accumulation_steps=1, num_generations=settings.group,
        max_completion_length=settings.max_new_tokens, beta=0.0, temperature=1.0, top_p=1.0, top_k=0, loss_type="grpo", learning_rate=settings.learning_rate,
        max_steps=steps, use_cpu=True, bf16=False, report_to=[], logging_strategy="no", save_strategy="no", gradient_checkpointing=False,
        lr_scheduler_type="constant", disable_tqdm=True, dataloader_pin_memory=False, optim="adamw_torch", adam_beta2=0.95, seed=0,
    )  # fmt: skip

    def judge(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [reward(ids) for ids in completion_ids]

    trainer = GRPOTrainer(
        model=model, reward_funcs=judge, args=config, train_dataset=Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer, callbacks=[clock]
    )  # fmt: skip
    generate, scored = trainer._generate, trainer._generate_and_score_completions

    def timed_generate(*given: Any, **named: Any) -> Any:
        began = CLOCK()
        found = generate(*given, **named)
        clock.generating = CLOCK() - began
        return found

    def timed_scored(*given: Any, **named: Any) -> Any:
        began = CLOCK()
        found = scored(*given, **named)
        clock.scoring = CLOCK() - began
        return found

    trainer._generate, trainer._generate_and_score_completions = timed_generate, timed_scored
    before = {name: len(values) for name, values in seconds.items()}
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for figures
        trainer.train()
    for name, values in seconds.items():
        del values[before[name]]


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano", help="nano, micro, mini or a config.json")
    parser.add_argument("--peer", default="trl", choices=("trl", "none"))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="steps of one run; the first is warm-up")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: the process's own seconds, for a busy machine; use it with --threads 1",
    )
    parser.add_argument("--turns", type=int, default=2, help="runs of each, one after the other")
    parser.add_argument("--peer-experts", default="grouped_mm", choices=("grouped_mm", "eager"), help="eager is several times slower here")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.clock == "cpu":
        global CLOCK
        CLOCK = time.process_time
        grpo.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    torch.set_num_threads(args.threads or min(2, torch.get_num_threads()))
    settings = GRPOConfig(
        prompts=args.prompts, group=args.group, max_new_tokens=args.new_tokens, steps=args.steps, learning_rate=1e-5, rewards={"model": 1.0},
        checkpoint_every_steps=args.steps + 1,
    )  # fmt: skip
    mine: Seconds = {"step": [], "generation": [], "training": []}
    theirs: Seconds = {"step": [], "generation": [], "training": []}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        texts = list(documents(0, 3000))
        tokenizer = bpe.train(texts, load_config(args.config).vocab_size, root / "tokenizer")
        config = load_config(args.config).with_(
            num_nextn_predict_layers=0, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
        )
        model = CausalLM(config)
        model.init_weights(0)
        folder = hf.export(model, root / "tokenizer", root / "model")
        questions = [text.split("\n")[0].removeprefix("Question: ") for text in texts[: 8 * args.prompts]]
        problems = Problems([problem_of({"prompt": q, "answer": "0", "id": n}) for n, q in enumerate(questions)], {}, {})
        prompts = [tokenizer.decode(render_prompt(one.messages, tokenizer, settings).ids) for one in problems.items]
        experts = None
        if args.peer == "trl":
            experts = args.peer_experts
        for turn in range(args.turns):
            ours(folder, problems, settings, root / f"ours-{turn}", mine)
            if experts is not None:
                trl(folder, prompts, settings, args.steps, experts, root / f"trl-{turn}", theirs)
    tags = {
        "config": args.config,
        "peer_name": args.peer,
        "peer_experts": experts,
        "prompts": args.prompts,
        "group": args.group,
        "new_tokens": args.new_tokens,
    }
    for name in ("step", "generation", "training"):
        value = statistics.median(mine[name])
        peer = statistics.median(theirs[name]) if theirs[name] else None
        emit(f"grpo_{name}_seconds", value, peer, None if peer is None else peer / value, least=min(mine[name]), peer_least=min(theirs[name], default=None), **tags)  # fmt: skip


if __name__ == "__main__":
    main()
