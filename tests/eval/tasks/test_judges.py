"""Verdicts on texts by hand: numbers, maths, code in fences and as continuations."""

from __future__ import annotations

import pytest

from rorqual.eval.task import Tools
from rorqual.eval.tasks import judges
from tests.eval import boxes

TOOLS = Tools(20)


@pytest.mark.parametrize(
    ("text", "gold", "score", "answer"),
    [
        ("so 3 + 4 = 7.", "7", 1.0, "7"), ("7, no 8", "7", 0.0, "8"), ("1,234 apples", "1234", 1.0, "1,234"), ("1/2", "0.5", 1.0, "1/2"),
        (r"\frac{3}{10}", "3/10", 1.0, r"\frac{3}{10}"), ("$5.00", "5", 1.0, "$5.00"), ("none", "7", 0.0, None), ("", "7", 0.0, None),
        ("9" * 8192, "7", 0.0, "9" * 8192), ("১২", "12", 1.0, "১২"), ("4/0", "4", 0.0, "4/0"), ("-3", "-3", 1.0, "-3"),
    ],
)  # fmt: skip
def test_numbers(text, gold, score, answer):
    found = judges.judge_number({"answer": gold}, text, TOOLS)
    assert (found.score, found.answer) == (score, answer)


def test_exact_trivia_and_f1():
    row = {"answers": ["The Spider-Man"]}
    assert judges.judge_exact(row, " spiderman!\n", TOOLS).score == 1.0 and judges.judge_exact(row, "spider man", TOOLS).score == 0.0
    assert judges.judge_trivia(row, "spider man", TOOLS).score == 1.0
    found = judges.judge_f1(row, "the spiderman movie", TOOLS)
    assert found.score == pytest.approx(2 / 3) and found.parts == {"exact_match": 0.0}
    for judge in (judges.judge_exact, judges.judge_trivia, judges.judge_f1):
        assert judge(row, " the ! ", TOOLS).answer is None


def test_maths():
    """Decided without the library, so these run everywhere."""
    row = {"gold": r"\frac{1}{2}"}
    found = [
        judges.judge_maths(row, text, TOOLS) for text in (r"\boxed{0.5}", r"\boxed{0.4}", "half", r"0.5 \boxed{}", "The answer is $1/2$.")
    ]
    assert [(one.score, one.answer) for one in found] == [(1.0, "0.5"), (0.0, "0.4"), (0.0, None), (0.0, None), (1.0, "1/2")]
    assert judges.judge_maths({"gold": "see figure"}, r"\boxed{see figure}", TOOLS).score is None
    line = [judges.judge_maths_line(row, text, TOOLS) for text in ("0.5\n\n问题：", "$x=1$, $0.5$。", r"\boxed{}", "", "<think>0.5")]
    assert [one.answer for one in line] == ["0.5", "0.5", None, None, None] and [one.score for one in line] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_instructions():
    row = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    found = judges.judge_instructions(row, 'Here:\n"no commas"', TOOLS)
    assert found.score == 0.0 and found.note == "not followed: startend:quotation"
    assert found.parts == {"prompt_loose": 1.0, "instruction_strict": 0.5, "instruction_loose": 1.0}
    assert judges.judge_instructions(row, " ", TOOLS).answer is None


@pytest.mark.parametrize(
    ("text", "prompt", "code", "whole"),
    [
        ("    return 1\n", "def f():\n", "    return 1\n", False),
        ("    return 1\n```\nmore", "def f():\n", "    return 1\n", False),
        ("```python\n    return 1\n```", "def f():\n", "    return 1", False),
        ("Sure:\n```python\ndef f():\n    return 1\n```\nand\n```\nf()\n```", "def f():\n", "def f():\n    return 1", True),
        ("<think>```python\nno\n```</think>\n```python\nyes\n```", "", "yes", True),
        ("<think>```python\nno\n```", "", "", False),
        ("x = 1", "", "x = 1", True),
        ("```python\nx = 1", "", "x = 1", True),
        ("", "def f():\n", "", False),
    ],
)
def test_code_of_an_answer(text, prompt, code, whole):
    assert judges.completion(text, prompt) == (code, whole)


def _tools() -> Tools:
    tools = Tools(10)
    tools._sandbox = boxes.best()
    return tools


def test_code_runs_apart_from_its_tests():
    tools = _tools()
    right = judges.run_code("def f(x):\n    return x + 1\n", "assert f(1) == 2", tools)
    wrong = judges.run_code("def f(x):\n    return x\n", "assert f(1) == 2", tools)
    assert (right.score, wrong.score) == (1.0, 0.0) and "AssertionError" in wrong.note
    for cheat in (
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "class A:\n    def __eq__(self, o): return True\ndef f(x): return A()",
    ):
        assert judges.run_code(cheat, "assert f(1) == 2", tools).score == 0.0


def test_programs():
    tools = _tools()
    assert judges.run_program("print(int(input()) * 2)", [("2", "4"), ("3", "6\n")], tools).score == 1.0
    found = judges.run_program("print(4)", [("2", "4"), ("3", "6")], tools)
    assert found.score == 0.0 and found.note.startswith("test 1")
    unknown = judges.run_parted("f() { :", "f() {", "}\n[ 1 = 1 ]\n", "sh", tools)
    assert unknown.score is None and "cannot be judged" in unknown.note
