"""Improve a model by reinforcement learning with rewards: GRPO and its published relatives.

rorqual grpo --model runs/laptop-sft --data problems.jsonl --out runs/laptop-grpo
rorqual grpo --model runs/laptop-sft --tasks chain_sum,leg_counting --preset dapo --prompts 16 --group 8 --max-new-tokens 128 --out runs/rl
rorqual grpo --model runs/code-sft --data tests.jsonl --reward code,format=0.2 --lora 16 --out runs/code-rl
rorqual grpo --preset r1 --formula                                      # what a preset maximises, nothing is trained
rorqual grpo --out runs/laptop-grpo --resume                            # exactly where it stopped
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check, tuning
from rorqual.errors import ConfigError

if TYPE_CHECKING:
    from rorqual.posttrain.grpo_config import GRPORun
    from rorqual.posttrain.presets import GRPOConfig

_PRESETS = ("grpo-deepseekmath", "grpo-v3", "r1-zero", "r1", "dapo", "dr-grpo", "gspo")
_SHORT = {
    "steps": "steps", "prompts": "prompts", "group": "group", "minibatches": "minibatches", "max_new_tokens": "max_new_tokens",
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "lr": "learning_rate", "warmup": "warmup_steps", "system": "system",
    "language": "target_language", "groups_without_signal": "groups_without_signal", "routing_replay": "routing_replay",
    "checkpoint_every": "checkpoint_every_steps", "seed": "seed",
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the verb: 0 when it is finished, 130 or 143 when a signal stopped it after saving. Raises RorqualError."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.formula:
        from rorqual.posttrain.presets import formula

        config, ours = _settings(args)
        print(formula(config, ours))
        return 0
    from rorqual.posttrain.grpo_config import GRPORun

    complete = args.model is not None and (args.data is None) != (args.tasks is None)
    run = tuning.configuration(
        parser, args, GRPORun, _run_of, complete=complete, start="--model DIR and one of --data FILE and --tasks A,B"
    )
    return _run(run, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual grpo", allow_abbrev=False,
        description="Reinforcement learning with groups: questions are answered several times, answers are rewarded by rules or judges, better ones than "
        "the group's mean become likelier. The result is a folder that generate, chat, serve, eval and export take.",
    )  # fmt: skip
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="run or model folder to start from, best one that was fine-tuned")
    add("--data", type=Path, metavar="FILE", help="questions as JSON lines: prompt or messages, answer or tests, kind")
    add("--tasks", metavar="A,B", help="generated questions of reasoning-gym's trusted tasks, e.g. chain_sum,leg_counting")
    add("--task-size", type=int, metavar="N", help="questions generated for each task (default: 2000)")
    tuning.add_options(parser)
    add("--preset", choices=_PRESETS, help="published settings to begin from; batch sizes are those of clusters")
    add("--formula", action="store_true", help="print what would be maximised, and train nothing")
    add(
        "--reward",
        metavar="A,B=W",
        help="accuracy, code, format, language, length, model, each with its weight (default: the preset's, or accuracy)",
    )
    add("--reward-model", metavar="DIR|URL", help="what gives the reward `model`: a reward model, or another model or server as a judge")
    add(
        "--rollout-url",
        metavar="URL",
        help="server that answers (`rorqual serve --rl`, or another that returns token ids) in place of this process",
    )
    add("--api-key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the key of servers")
    add("--steps", type=int, help="optimiser steps")
    add("--max-minutes", type=float, metavar="M", help="end after the step that passes this time")
    add("--prompts", type=int, metavar="N", help="questions of a rollout")
    add("--group", type=int, metavar="G", help="answers to each question")
    add("--minibatches", type=int, metavar="N", help="optimiser steps of a rollout")
    add("--max-new-tokens", type=int, metavar="N", help="longest answer")
    add("--temperature", type=float)
    add("--top-p", type=float)
    add("--top-k", type=int)
    add("--lr", type=float, metavar="RATE", help="learning rate, constant after the warm-up")
    add("--warmup", type=int, metavar="STEPS", help="steps of linear growth of the learning rate")
    add("--kl", type=float, metavar="BETA", help="weight of the KL term to the reference model")
    add("--clip", type=float, metavar="EPS", help="clip of the ratio on both sides")
    add("--groups-without-signal", choices=("keep", "drop", "refill"), help="what to do with groups of equal rewards")
    add(
        "--routing-replay",
        choices=("r3", "r2", "off"),
        help="experts in training: the engine's, those of the pass for pi_old, or chosen anew",
    )
    add("--style", choices=("v3", "r1", "v3.1"), help="chat style (default: the model's own)")
    add("--thinking", action=argparse.BooleanOptionalAction, help="whether answers reason first (default: as the style or preset does)")
    add("--system", metavar="TEXT", help="system text of questions that bring none")
    add("--language", metavar="CODE", help="target of the reward `language` (default: en)")
    tuning.add_lora(parser)
    add("--checkpoint-every", type=int, metavar="STEPS", help="optimiser steps between checkpoints (default: 50)")
    add("--device", help="auto, cpu, cuda (default: auto)")
    add("--seed", type=int, help="of questions' order and of sampling (default: 0)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=JSON",
        help="any other field, e.g. objective.clip_dual=3 or optimizer.beta2=0.99",
    )
    memory_check.add_option(parser)
    return parser


def _settings(args: argparse.Namespace) -> tuple[GRPOConfig, tuple[str, ...]]:
    """(settings, names of fields that are ours though a preset was named)."""
    from rorqual.cli.pretrain import read_settings
    from rorqual.posttrain.presets import GRPOConfig, preset
    from rorqual.train.records import override

    found = preset(args.preset) if args.preset else None
    config, ours = (GRPOConfig(), ()) if found is None else (found.config, found.ours)
    given: dict[str, Any] = {field: value for name, field in _SHORT.items() if (value := getattr(args, name)) is not None}
    if args.kl is not None:
        given["objective.kl_beta"] = args.kl
    if args.clip is not None:
        given |= {"objective.clip_low": args.clip, "objective.clip_high": args.clip}
    if args.style is not None:
        given["style"] = args.style
    if args.thinking is not None:
        given["thinking"] = args.thinking
    elif args.style is not None:
        given["thinking"] = args.style == "r1"
    if args.reward is not None:
        given["rewards"] = _rewards(args.reward)
    elif args.reward_model is not None:
        given["rewards"] = {**config.rewards, "model": 1.0}
    given |= read_settings(args.set)
    changed = tuple(name for name in given if found is not None)
    return override(config, given), tuple(dict.fromkeys((*ours, *changed)))


def _rewards(text: str) -> dict[str, float]:
    """{component: weight} of `accuracy,format=0.5`."""
    out: dict[str, float] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, weight = part.partition("=")
        try:
            out[name] = float(weight) if weight else 1.0
        except ValueError:
            raise ConfigError(f"--reward ({part!r}) must be NAME or NAME=WEIGHT, e.g. accuracy,format=0.5") from None
    return out


def _run_of(args: argparse.Namespace) -> GRPORun:
    from rorqual.posttrain.base import open_base
    from rorqual.posttrain.grpo_config import GRPORun
    from rorqual.tokenizer import templates
    from rorqual.train.records import override

    config, _ = _settings(args)
    if args.style is None and not (args.preset or "").startswith("r1"):
        style = templates.style_of(open_base(args.model).tokenizer())
        if style == "template":
            raise ConfigError(
                f"{args.model} brings a chat template of its own, whose parts have no known author; choose a style with --style v3, r1 or v3.1"
            )
        thinking = config.thinking if args.thinking is not None else config.thinking or style == "r1"
        config = override(config, {"style": style, "thinking": thinking})
    given = {
        "device": args.device, "weights": args.weights, "task_size": args.task_size, "reward_model": args.reward_model, "rollout_url": args.rollout_url, "preset": args.preset,
        "max_seconds": None if args.max_minutes is None else 60 * args.max_minutes,
        "lora": tuning.lora_of(args, config.seed),
    }  # fmt: skip
    return GRPORun(
        model=str(args.model), data=None if args.data is None else str(args.data), tasks=tuple(filter(None, (args.tasks or "").split(","))), grpo=config,
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip


def check_grpo(run: GRPORun, force: bool = False) -> None:
    """Prints what the run needs and refuses what cannot fit, before anything is allocated."""
    from rorqual.inference.engine import DEFAULT_MEMORY
    from rorqual.kernels import native
    from rorqual.planner.estimate import adapted_parameters, serving_estimate, training_estimate
    from rorqual.posttrain.base import open_base

    (device, name, on_cpu), base, config = tuning.plain_dtype(run), open_base(run.model).config, run.grpo
    length = min(base.max_position_embeddings, 256 + config.max_new_tokens)
    lora: dict[str, Any] = {}
    if run.lora is not None:
        lora = {"lora_rank": run.lora.rank, "lora_targets": run.lora.targets, "base": run.weights or name}
    width = 4 if name == "fp32" else 2
    cache = config.prompts * config.group * length * base.num_hidden_layers * (base.kv_lora_rank + base.qk_rope_head_dim) * width
    estimate = training_estimate(
        base, micro_batch=max(1, config.micro_batch_tokens // length), length=length, dtype=name, compiled=on_cpu and native.library().library is not None,
        foreach=not on_cpu, moments=config.optimizer.moments, mtp=False, validation=False, frozen_copies=int(config.objective.kl_beta > 0),
        cache_bytes=min(DEFAULT_MEMORY, cache), what=f"reinforcement learning on {device}", **lora,
    )  # fmt: skip
    if run.reward_model is not None and not run.reward_model.startswith(("http://", "https://")):
        estimate = memory_check.beside(estimate, "reward model", Path(run.reward_model))
    if run.lora is not None and run.weights != "fp8":  # the engine has a merged copy of the adapted matrices
        estimate = memory_check.with_part(estimate, "merged", width * adapted_parameters(base, run.lora.targets))
    panels = 0.0
    if (
        on_cpu and native.library().library is not None and run.rollout_url is None
    ):  # the engine's compiled step reads copies of the weights, where there is room for them
        panels = serving_estimate(base, weights=lora.get("base", name), cache_bytes=0.0).parts.get("panels", 0.0)
    memory_check.check_either(memory_check.with_part(estimate, "panels", panels), estimate, memory_check.available_memory(device), force)


def _run(run: GRPORun, args: argparse.Namespace) -> int:
    from rorqual.posttrain.grpo import read_questions, run_grpo
    from rorqual.posttrain.grpo_report import write_report
    from rorqual.posttrain.presets import formula, preset

    questions = read_questions(run)
    left_out = "".join(f"; left out {count} x {reason} ({questions.examples[reason]})" for reason, count in questions.rejected.items())
    print(f"{len(questions.items):,} questions{left_out}")
    ours: tuple[str, ...] = ()
    if run.preset:
        from rorqual.train.records import changes

        named = preset(run.preset)
        ours = (*named.ours, *changes(named.config, run.grpo))
        print(f"{run.preset} ({named.source}):")
    print(formula(run.grpo, ours))
    check_grpo(run, force=args.ignore_memory)
    result = run_grpo(
        run, args.out, problems=questions, resume_run=args.resume, overwrite=args.overwrite, api_key=os.environ.get(args.api_key_env)
    )
    if result.signal is not None:
        return tuning.stopped("grpo", args.out, result.step, run.grpo.steps, result.signal)
    report = write_report(args.out)
    if result.first_reward is not None and result.last_reward is not None:
        print(f"mean reward {result.first_reward:.3f} in the first rollout, {result.last_reward:.3f} in the last")
    if result.silent:
        print(
            f"the last {result.silent} rollouts had no group whose rewards differ, so nothing was learned from them; {args.out / 'answers.jsonl'} has the answers"
        )
    print(f"finished: {result.step} steps; report: {report}; talk to it with: rorqual chat {shlex.quote(str(args.out))}")
    return 0
