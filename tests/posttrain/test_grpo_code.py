"""Runs of GRPO paid by programs that pass their tests in the sandbox: with answers from a script, and from a model that learned to write some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.cli.main import main
from rorqual.errors import DeviceError
from rorqual.eval import sandbox
from rorqual.posttrain.grpo import run_grpo
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problems, problem_of, read_problems
from rorqual.posttrain.rewards import Rewards
from rorqual.posttrain.rollout import Answer, Prompt, parse
from rorqual.tokenizer import bpe
from tests.posttrain.tiny_chat import write_model


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        sandbox.Sandbox()
    except DeviceError as error:
        pytest.skip(f"no sandbox here: {error}")


def program(name: str, operator: str) -> str:
    return f"```python\ndef {name}(a, b):\n    return a {operator} b\n```"


OPERATORS = {"add": "+", "sub": "-", "mul": "*"}
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{name}?", "tests": [f"assert {name}(7, 3) == {eval(f'7 {sign} 3')}"], "entry_point": name}
    for name, sign in OPERATORS.items()
]


class Scripted:
    """A right program, then a wrong one, then one without a fence."""

    def __init__(self, tokenizer: bpe.Tokenizer) -> None:
        self.tokenizer = tokenizer

    def sample(self, prompts: Sequence[Prompt], config: GRPOConfig, keys: Sequence[int]) -> list[list[Answer]]:
        texts = (program("add", "+"), program("add", "-"), "def add(a, b): return a + b")[: config.group]
        out = []
        for prompt in prompts:
            ids = [[*self.tokenizer.encode_text(text), self.tokenizer.eos_id] for text in texts]
            out.append(
                [parse(Answer(prompt.ids, one, False), self.tokenizer, "v3", False, frozenset([self.tokenizer.eos_id])) for one in ids]
            )
        return out


def test_programs_are_paid_by_their_tests(tmp_path: Path) -> None:
    write_model(tmp_path, num_hidden_layers=1)
    settings = GRPOConfig(steps=1, prompts=1, group=3, max_new_tokens=80, rewards={"code": 1.0, "format": 0.5})
    run = GRPORun(model=str(tmp_path / "model"), device="cpu", grpo=settings)
    problems = Problems([problem_of(ROWS[0])], {}, {})
    result = run_grpo(run, tmp_path / "out", problems=problems, rollout=Scripted(bpe.load(tmp_path / "model")), progress=False)
    assert result.step == 1 and result.first_reward == pytest.approx((1.5 + 0.5 + 0.5) / 3)
    (record,) = (json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines())
    assert [one["components"]["code"]["verdict"] for one in record["answers"]] == ["right", "wrong", "wrong"]
    assert record["answers"][2]["components"]["code"]["note"] == "no fenced block of code" and record["signal"]
    assert [one["reward"] for one in record["answers"]] == [1.5, 0.5, 0.5]


HACKS = {
    "exits before the tests": "import sys\nsys.exit(0)",
    "ends the process": "import os\ndef add(a, b):\n    os._exit(0)",
    "says that it passed": "print('passed')\ndef add(a, b):\n    print('1 passed')",
    "equals everything": "class All:\n    def __eq__(self, other):\n        return True\ndef add(a, b):\n    return All()",
    "looks for the tests": "def add(a, b):\n    import glob\n    return [open(name).read() for name in glob.glob('/**/*test*', recursive=True)][0]",
    "never ends": "def add(a, b):\n    while True:\n        pass",
}


@pytest.mark.slow
def test_programs_that_cheat_earn_nothing() -> None:
    """Field case F39, as the reward sees it: judged, and wrong."""
    rewards = Rewards(GRPOConfig(rewards={"code": 1.0}, reward_seconds=2.0))
    fenced = [f"```python\n{text}\n```" for text in (*HACKS.values(), "def add(a, b):\n    return a + b")]
    found = rewards.judge_all([(problem_of(ROWS[0]), Answer([], [1], False, text=text, content=text)) for text in fenced])
    rewards.close()
    assert [one.reward for one in found] == [0.0] * len(HACKS) + [1.0]
    assert all(one.outcomes["code"].verdict == "wrong" for one in found[:-1])


def test_other_tests_are_other_problems() -> None:
    """A resumed run must be paid by the tests that it began with."""
    changed = {**ROWS[0], "tests": ["assert True"]}
    assert Problems([problem_of(ROWS[0])], {}, {}).fingerprint != Problems([problem_of(changed)], {}, {}).fingerprint


@pytest.mark.slow
def test_a_model_that_writes_programs_is_paid_through_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SFT on right and wrong programs in equal parts, then three steps of GRPO: groups with a signal, and more reward at the end."""
    torch.set_num_threads(1)
    write_model(tmp_path, num_hidden_layers=2, initializer_range=0.05)
    talks, questions = tmp_path / "talks.jsonl", tmp_path / "code.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{name}?"}, {"role": "assistant", "content": program(name, sign)}]}
        for name, right in OPERATORS.items() for sign in (right, "%")
    ]  # fmt: skip
    talks.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert len(read_problems(questions).items) == 3
    sft = [
        "sft",
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(talks),
        "--out",
        str(tmp_path / "sft"),
        "--epochs",
        "40",
        "--lr",
        "5e-3",
    ]
    assert main([*sft, "--batch", "4", "--max-tokens", "128", "--mtp-weight", "0"]) == 0
    grpo = [
        "grpo",
        "--model",
        str(tmp_path / "sft"),
        "--data",
        str(questions),
        "--reward",
        "code,format=0.1",
        "--out",
        str(tmp_path / "rl"),
    ]
    argv = [*grpo, "--steps", "3", "--prompts", "3", "--group", "6", "--max-new-tokens", "80", "--lr", "5e-4", "--warmup", "0"]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "3 questions" in shown and "finished: 3 steps" in shown and "r = 1 code + 0.1 format" in shown
    steps = [json.loads(line) for line in (tmp_path / "rl" / "metrics.jsonl").read_text().splitlines()]
    steps = [one for one in steps if one["kind"] == "train"]
    said = [one["components"]["code"] for one in steps]
    assert all(one["right"] + one["wrong"] == 18 and one["unknown"] == 0 for one in said) and steps[0]["groups_with_signal"] >= 2
    assert said[0]["right"] > 3 and said[-1]["right"] > said[0]["right"]
