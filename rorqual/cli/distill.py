"""Make fine-tuning data from a teacher's answers: draw, verify, filter, two variants.

rorqual distill --teacher runs/expert --problems maths.jsonl --out data/maths --samples 8 --against ../shared/data
rorqual distill --teacher http://localhost:8000/v1 --thinking on --problems maths.jsonl --out data/maths
rorqual distill --teacher math=runs/maths-expert --teacher code=runs/code-expert --problems all.jsonl --out data/all
rorqual sft --model runs/base --data data/maths/sft.jsonl --out runs/tuned
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rorqual.cli import memory_check
from rorqual.errors import ConfigError

if TYPE_CHECKING:
    from rorqual.posttrain.distill import DistillConfig
    from rorqual.posttrain.generate import Teacher
    from rorqual.posttrain.problems import Problems


def main(argv: list[str]) -> int:
    """Runs the verb; returns the exit code. Raises RorqualError; what was drawn before is kept."""
    args = _parser().parse_args(argv)

    from rorqual.posttrain.decontaminate import EvaluationText
    from rorqual.posttrain.distill import Sources, distill, originals_of
    from rorqual.posttrain.generate import open_teacher

    config = _config(args)
    if (args.out / "manifest.json").exists():
        raise ConfigError(f"{args.out} holds a finished distillation; choose another --out, or delete it")
    problems = _problems(args)
    evaluation = EvaluationText.read(args.against) if args.against else None
    key = os.environ.get(args.api_key_env)
    targets = dict.fromkeys(_targets(args, problems).values())
    local = [Path(one) for one in [*targets, args.original, args.reward_model] if one and not one.startswith(("http://", "https://"))]
    memory_check.check_models(
        local,
        "distillation" if len(local) == 1 else f"distillation with {len(local)} models",
        weights=args.weights,
        force=args.ignore_memory,
    )
    teacher = _teacher(args, problems, key)
    original = open_teacher(args.original, api_key=key, parallel=args.parallel, weights=args.weights) if args.original else None
    reward, facts = None, dict[str, Any]()
    if args.reward_model:
        from rorqual.posttrain.reward_model import open_reward

        reward, facts = open_reward(args.reward_model)
    sources = Sources(
        original,
        originals_of(args.problems, problems) if args.problems else {},
        reward,
        facts,
        evaluation,
        str(args.problems or args.tasks),
    )
    from rorqual.cli.progress import BuildProgress

    with BuildProgress() as bars:
        manifest = distill(problems, teacher, args.out, config, sources, bars)
    print(_summary(manifest, args.out))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rorqual distill", allow_abbrev=False,
        description="Draw answers from a teacher, keep what is verified and passes the filters, and write it as conversations for `rorqual sft`: the problem "
        "with its original answer, and a system prompt, the problem and the reasoned answer. A call that was stopped goes on where it was.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--teacher", required=True, action="append", metavar="[DOMAIN=]DIR|URL",
        help="run or model folder, or the base URL of an OpenAI-compatible server; with DOMAIN=, several times: the expert for problems of that `domain` "
        "or kind (math, code, ...)",
    )  # fmt: skip
    add("--problems", type=Path, metavar="FILE", help="JSON lines with a prompt (or messages) and an answer or tests")
    add("--tasks", metavar="A,B", help="instead of a file: tasks of reasoning-gym")
    add("--size", type=_positive, default=100, metavar="N", help="with --tasks: problems of each (default: 100)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the result")
    add("--limit", type=_positive, metavar="N", help="only the first N problems")
    add("--samples", type=_positive, default=4, metavar="N", help="answers drawn for each problem (default: 4)")
    add("--keep", type=_positive, default=1, metavar="N", help="reasoned answers kept of each problem (default: 1)")
    add("--pick", choices=("shortest", "reward", "diverse"), default="shortest", help="which of the good ones (default: shortest)")
    add("--temperature", type=float, default=0.6, help="of the draws (default: 0.6)")
    add("--top-p", type=float, default=0.95, help="draw from the fewest tokens that reach this probability (default: 0.95)")
    add(
        "--max-tokens",
        type=_positive,
        default=2048,
        metavar="N",
        help="most tokens of an answer; longer ones are cut and left out (default: 2048)",
    )
    add(
        "--thinking",
        choices=("auto", "on", "off"),
        default="auto",
        help="whether answers reason first (default: as the teacher's chat style does)",
    )
    add("--system", metavar="TEXT", help="system prompt of the reasoned variant (default: one that asks for reflection and verification)")
    add("--ask-with-system", action="store_true", help="show the system prompt to the teacher too")
    add("--original", metavar="DIR|URL", help="who gives the original answers that the problems' file does not bring")
    add("--reward-model", metavar="DIR", help="folder of `rorqual reward-model`; judges what no rule can, and is asked for all")
    add("--min-reward", type=float, default=0.5, metavar="X", help="least score of the reward model, from 0 to 1 (default: 0.5)")
    add("--keep-unjudged", action="store_true", help="keep answers that nothing could judge")
    add(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="evaluation file or folder whose 10-grams may not occur; several times",
    )
    add("--language", default="auto", metavar="L", help="language of the answers: en, zh, ... (default: auto, the question's)")
    add("--min-language-share", type=float, default=0.9, metavar="X", help="share of the letters that must be in its script (default: 0.9)")
    add("--max-repeated", type=float, default=0.1, metavar="X", help="share of the text that may repeat earlier 10-grams (default: 0.1)")
    add("--min-length", type=_positive, default=1, metavar="N", help="least tokens of a kept answer (default: 1)")
    add("--max-length", type=_positive, metavar="N", help="most tokens of a kept answer (default: --max-tokens)")
    add("--seed", type=int, default=0, help="of the draws (default: 0)")
    add("--teacher-model", metavar="NAME", help="with a URL: the model's name there (default: the first that the server lists)")
    add("--api-key-env", default="OPENAI_API_KEY", metavar="VAR", help="environment variable with the server's key, if it wants one")
    add("--parallel", type=_positive, default=8, metavar="N", help="with a URL: problems asked at a time (default: 8)")
    add("--weights", choices=("fp32", "bf16", "fp8"), default="fp32", help="with a folder: how weights are kept in memory (default: fp32)")
    memory_check.add_option(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _config(args: argparse.Namespace) -> DistillConfig:
    from rorqual.posttrain.distill import SYSTEM, DistillConfig
    from rorqual.posttrain.filters import FilterConfig
    from rorqual.posttrain.generate import Drawing

    if (args.problems is None) == (args.tasks is None):
        raise ConfigError("give the problems: --problems FILE, or --tasks NAMES")
    thinking = None if args.thinking == "auto" else args.thinking == "on"
    return DistillConfig(
        drawing=Drawing(args.samples, args.temperature, args.top_p, args.max_tokens, args.seed, thinking),
        filters=FilterConfig(args.language, args.min_language_share, args.max_repeated, args.min_length, args.max_length),
        keep=args.keep, pick=args.pick, min_reward=args.min_reward, system=SYSTEM if args.system is None else args.system,
        ask_with_system=args.ask_with_system, unjudged="keep" if args.keep_unjudged else "drop",
    )  # fmt: skip


def _teacher(args: argparse.Namespace, problems: Problems, key: str | None) -> Teacher:
    """The teacher, or an expert for each domain that the problems have."""
    from rorqual.posttrain.distill import domain_of
    from rorqual.posttrain.generate import ByDomain, open_teacher

    named = _targets(args, problems)
    domains = {one.id: domain_of(one) for one in problems.items}

    made: dict[str, Teacher] = {}  # an expert for two domains is loaded once

    def opened(target: str) -> Teacher:
        if target not in made:
            made[target] = open_teacher(target, model=args.teacher_model, api_key=key, parallel=args.parallel, weights=args.weights)
        return made[target]

    if set(named) == {"*"}:
        return opened(named["*"])
    ByDomain(dict.fromkeys(named), domains)  # type: ignore[arg-type]  # refused before a model is loaded
    return ByDomain({name: opened(target) for name, target in named.items()}, domains)


def _targets(args: argparse.Namespace, problems: Problems) -> dict[str, str]:
    """Folder or URL of the teacher of each domain that the problems have; "*" for all others'."""
    from rorqual.posttrain.distill import domain_of

    found = [re.fullmatch(r"(?:([\w-]+)=)?(.+)", text, re.DOTALL) for text in args.teacher]
    named = {(one[1] or "*"): one[2] for one in found if one}
    if len(named) < len(args.teacher):
        raise ConfigError(f"--teacher ({', '.join(args.teacher)}): one for each domain, and one at most without a domain")
    domains = {domain_of(one) for one in problems.items}
    return {name: target for name, target in named.items() if name == "*" or name in domains}


def _problems(args: argparse.Namespace) -> Problems:
    from rorqual.posttrain.problems import Problems, generate_problems, read_problems

    found = read_problems(args.problems) if args.problems else generate_problems(args.tasks.split(","), args.size, args.seed)
    for reason, count in found.rejected.items():
        print(f"left out {count:,}: {reason} ({found.examples[reason]})", file=sys.stderr)
    return Problems(found.items[: args.limit], found.rejected, found.examples)


def _summary(manifest: dict[str, Any], out: Path) -> str:
    counts = manifest["counts"]
    lines = [f"{counts['problems_solved']} of {counts['problems']} problems have a reasoned answer that was kept"]
    if counts["problems_in_evaluation_data"]:
        lines.append(f"  {counts['problems_in_evaluation_data']} problems are in the evaluation data and were not asked")
    for stage, fates in counts["drafts"].items():
        if fates:
            lines.append(f"  {stage}: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items(), key=lambda item: -item[1])))
    lines += [f"{out / name}  {facts['lines']:,} lines" for name, facts in manifest["files"].items()]
    return "\n".join([*lines, f"{out / 'manifest.json'}"])
