"""Worked arithmetic: steps and answers are true, sets share no question, counts and kinds are what was asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rorqual.data import synthetic
from rorqual.errors import ConfigError
from rorqual.posttrain import arithmetic
from rorqual.posttrain.arithmetic import Worked, draw, key_of, questions_of, read_problem, split_of, write_sets
from rorqual.posttrain.sft_config import RenderConfig
from rorqual.posttrain.sft_data import describe, samples_of
from rorqual.tokenizer import bpe


def test_a_problem_is_taken_apart():
    found = [read_problem(*synthetic.problem(0, index, arithmetic.KINDS)) for index in range(1000)]
    assert {one.kind for one in found} == set(arithmetic.KINDS)
    for one in found:
        asked = re.fullmatch(r"What is ([\d +*()-]+)\?", one.question)
        if asked:
            assert str(eval(asked[1])) == one.answer  # our own digits and signs
            terms = re.findall(r"[+*-]", asked[1])
            kinds = {"+": "addition", "-": "subtraction", "*": "multiplication"}
            assert one.kind == (kinds[terms[0]] if len(terms) == 1 else "precedence" if "*" in terms else "chain"), one
        assert one.steps


def test_a_problem_as_a_conversation(tmp_path: Path):
    one = Worked("addition", "What is 2 + 3?", ("ones: 2 + 3 = 5, write 5", "2 + 3 = 5"), "5")
    tokenizer = bpe.train(["What is 2 + 3?"], 300, tmp_path)
    text = describe(next(samples_of(one.conversation(), tokenizer, RenderConfig(style="r1"))), tokenizer)
    assert text.endswith("<｜Assistant｜><think>\n[ones: 2 + 3 = 5, write 5\n2 + 3 = 5\n</think>\n\n\\boxed{5}<｜end▁of▁sentence｜>]")
    assert one.problem() == {
        "id": key_of("What is 2 + 3?"),
        "messages": [{"role": "user", "content": "What is 2 + 3?"}],
        "answer": "5",
        "kind": "math",
    }


def test_sets_share_no_question_and_follow_the_seed():
    sets = {split: {one.question for one in draw(split, 200, seed=seed)} for split in arithmetic.SPLITS for seed in (0, 1)}
    assert not sets["sft"] & sets["rl"] and not sets["sft"] & sets["heldout"] and not sets["rl"] & sets["heldout"]
    assert all(split_of(question) == split for split, questions in sets.items() for question in questions)
    assert draw("rl", 20, seed=4) == draw("rl", 30, seed=4)[:20] != draw("rl", 20, seed=5)


def test_kinds_digits_and_exclusion_are_kept(monkeypatch):
    monkeypatch.setattr(arithmetic, "_PATIENCE", 500)
    seen = questions_of(0, 400)
    found = draw("heldout", 50, kinds=("addition", "chain"), max_digits=2, exclude=seen)
    assert {one.kind for one in found} == {"addition", "chain"} and max(one.largest for one in found) <= 2
    assert not {one.question for one in found} & seen
    with pytest.raises(ConfigError, match="different questions of addition"):
        draw("heldout", 10**6, kinds=("addition",), max_digits=1)
    for wrong in ({"split": "test"}, {"split": "rl", "kinds": ("algebra",)}, {"split": "rl", "kinds": ()}):
        with pytest.raises(ConfigError, match="must be one of"):
            draw(count=1, **wrong)  # type: ignore[arg-type]


def test_the_files_are_what_the_readers_read(tmp_path: Path):
    files = write_sets(tmp_path, sft=30, rl=20, heldout=10, kinds=("addition",), max_digits=2)
    lines = {split: [json.loads(line) for line in file.read_text().splitlines()] for split, file in files.items()}
    assert [len(lines[split]) for split in arithmetic.SPLITS] == [30, 20, 10]
    assert lines["sft"][0]["messages"][1]["content"].startswith("\\boxed{") and lines["heldout"][0]["kind"] == "math"


def test_sums_worked_by_places():
    def steps(a: int, b: int) -> tuple[str, ...]:
        return Worked("addition", f"What is {a} + {b}?", (), str(a + b)).by_places().steps

    assert steps(77, 58) == ("tens: 70 + 50 = 120", "ones: 7 + 8 = 15", "120 + 15 = 135")
    assert steps(4, 60) == ("tens: 0 + 60 = 60", "ones: 4 + 0 = 4", "60 + 4 = 64") and steps(4, 5) == ("ones: 4 + 5 = 9",)
    assert steps(999, 1) == ("hundreds: 900 + 0 = 900", "tens: 90 + 0 = 90", "900 + 90 = 990", "ones: 9 + 1 = 10", "990 + 10 = 1000")
    for one in draw("sft", 200, kinds=("addition",)):
        worked = one.by_places().steps
        assert worked[-1].endswith(f"= {one.answer}")
        for left, _, right in (line.partition(": ")[2].partition(" = ") if ":" in line else line.partition(" = ") for line in worked):
            assert sum(map(int, left.split(" + "))) == int(right)
    with pytest.raises(ConfigError, match="cannot be worked by places"):
        Worked("chain", "What is 1 + 2 + 3?", (), "6").by_places()


def test_a_share_of_the_examples_has_only_the_last_step(tmp_path: Path):
    def thoughts(short: int) -> list[str]:
        file = write_sets(
            tmp_path, sft=400, rl=1, heldout=1, kinds=("addition",), max_digits=2, working="places", short_percent=short
        )["sft"]  # fmt: skip
        return [json.loads(line)["messages"][1]["reasoning_content"] for line in file.read_text().splitlines()]

    worked, mixed, short = thoughts(0), thoughts(35), thoughts(100)
    assert all("ones: " in one for one in worked) and not any("\n" in one or ":" in one for one in short)
    chosen = [a != b for a, b in zip(worked, mixed, strict=True)]
    assert 110 <= sum(chosen) <= 170  # 140 expected, standard deviation 9.5
    assert mixed == [s if c else w for w, s, c in zip(worked, short, chosen, strict=True)]
    with pytest.raises(ConfigError, match=r"short_percent \(101\)"):
        write_sets(tmp_path, sft=1, rl=1, heldout=1, short_percent=101)
