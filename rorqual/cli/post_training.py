"""The stages of `rorqual run` behind pre-training: problems, fine-tuning, reinforcement learning, accuracy before and after each.

stages = PostStages(course.placed(out), out)
signal = stages.train(stage)          # None when both are finished
figures = stages.accuracy()           # accuracy_pretrained, accuracy_sft, accuracy_grpo, each with _stderr, and _greedy
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rorqual.posttrain.accuracy import Accuracy
    from rorqual.posttrain.problems import Problem
    from rorqual.recipes.post_training import PostTraining

FOLDERS = ("problems", "sft", "grpo")
PLAIN = "Question: {question}\n"
"""How the corpus asks; the pre-trained model has never seen a conversation."""
SAMPLES = 4
"""Answers to each held-out problem, drawn at the temperature of training; one more is greedy."""
SHOWN = 12
"""Held-out answers kept of each model for the report."""

Stage = Callable[[str], AbstractContextManager[None]]


class PostStages:
    """Each stage is left out when what it makes is there, and goes on where it stopped when it is begun."""

    def __init__(self, course: PostTraining, out: Path) -> None:
        self.course, self.out = course, out

    def train(self, stage: Stage) -> int | None:
        """Problems, fine-tuning, reinforcement learning; the signal that stopped one of them, after saving."""
        from rorqual.cli.grpo import check_grpo
        from rorqual.cli.sft import check_sft
        from rorqual.posttrain.grpo import run_grpo
        from rorqual.posttrain.sft import run_sft

        with stage("problems"):
            self._problems()
        sft, grpo = self.out / "sft", self.out / "grpo"
        if not (sft / "hf" / "config.json").is_file():
            check_sft(self.course.sft)
            with stage("sft"):
                signal = run_sft(self.course.sft, sft, resume_run=(sft / "config.json").is_file()).signal
            if signal is not None:
                return signal
        if not (grpo / "hf" / "config.json").is_file():
            check_grpo(self.course.grpo)
            with stage("grpo"):
                return run_grpo(self.course.grpo, grpo, resume_run=(grpo / "config.json").is_file()).signal
        return None

    def clear(self) -> None:
        """Removes what earlier runs of these stages left."""
        for name in FOLDERS:
            shutil.rmtree(self.out / name, ignore_errors=True)

    def accuracy(self) -> dict[str, Any]:
        """Accuracy of the three models on the held-out problems, sampled and greedy, with standard errors, and some of their greedy answers."""
        from rorqual.posttrain.problems import read_problems

        problems = read_problems(self.out / "problems" / "heldout.jsonl").items
        figures: dict[str, Any] = {}
        examples: dict[str, list[dict[str, Any]]] = {}
        for name, folder, plain in (("pretrained", self.out, PLAIN), ("sft", self.out / "sft", None), ("grpo", self.out / "grpo", None)):
            found, greedy = self._measure(folder, problems, plain)
            figures |= {f"accuracy_{name}": found.value, f"accuracy_{name}_stderr": found.stderr}
            figures |= {f"accuracy_{name}_greedy": greedy.value, f"accuracy_{name}_greedy_stderr": greedy.stderr}
            examples[name] = [
                {"question": one.question, "gold": one.gold, "text": one.text, "right": one.right} for one in greedy.answers[:SHOWN]
            ]
        course = self.course
        about = {
            "problems": len(problems), "kinds": list(course.kinds), "max_digits": course.max_digits, "short_percent": course.short_percent, "samples": SAMPLES, "temperature": course.grpo.grpo.temperature,
            "pretrained_prompt": PLAIN, "budget_minutes": dict(course.minutes), "examples": examples,
        }  # fmt: skip
        return {**figures, "post_training": about}

    def _problems(self) -> None:
        from rorqual.posttrain.arithmetic import write_sets

        folder = self.out / "problems"
        if not all((folder / f"{name}.jsonl").is_file() for name in ("sft", "rl", "heldout")):
            course = self.course
            write_sets(
                folder, sft=course.sft_samples, rl=course.rl_problems, heldout=course.heldout_problems, kinds=course.kinds,
                max_digits=course.max_digits, working=course.working, short_percent=course.short_percent,
            )  # fmt: skip

    def _measure(self, folder: Path, problems: list[Problem], plain: str | None) -> tuple[Accuracy, Accuracy]:
        from rorqual.inference.prompts import end_ids
        from rorqual.posttrain.accuracy import measure
        from rorqual.posttrain.base import open_base

        base = open_base(folder)
        tokenizer = base.tokenizer()
        model, ends, stop = base.load(), end_ids(base.tokenizer_folder, tokenizer), ("\n\n",) if plain else ()
        sampled, greedy = (
            measure(model, tokenizer, problems, self.course.grpo.grpo, end_ids=ends, plain=plain, stop=stop, samples=samples)
            for samples in (SAMPLES, None)
        )
        return sampled, greedy


def sentence(results: dict[str, Any]) -> str:
    """The three accuracies in a line, for the end of a run."""
    parts = [
        f"{100 * results[f'accuracy_{name}']:.1f} % (± {100 * results[f'accuracy_{name}_stderr']:.1f}, greedy {100 * results[f'accuracy_{name}_greedy']:.1f}) {words}"
        for name, words in (("pretrained", "pre-trained"), ("sft", "after SFT"), ("grpo", "after GRPO"))
    ]
    return f"right answers on {results['post_training']['problems']} problems it has not seen: " + ", ".join(parts)
