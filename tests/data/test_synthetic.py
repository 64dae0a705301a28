r"""Generated arithmetic: every step of every text is evaluated again, by other means."""

from __future__ import annotations

import ast
import operator
import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rorqual.data import synthetic
from rorqual.data.synthetic import document, documents

EXPRESSION = r"[-(]?\d+(?:[-+*%() ]*\d+)*\)?(?: \* \d+)?"
EQUATION = re.compile(rf"({EXPRESSION}) = (-?\d+)")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod}


def evaluate(text: str) -> int:
    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        assert isinstance(node, ast.BinOp)
        return int(OPERATIONS[type(node.op)](value(node.left), value(node.right)))

    return value(ast.parse(text.strip(), mode="eval").body)


def problems(text: str) -> list[list[str]]:
    return [block.strip().split("\n") for block in text.split("\n\n")]


def test_every_step_is_true_and_every_answer_follows() -> None:
    steps = kinds = 0
    for text in documents(seed=0, count=1500):
        for question, *work, answer in problems(text):
            boxed = re.fullmatch(r"Answer: \\boxed\{(-?\d+|equal)\}", answer)
            assert question.startswith("Question: ") and boxed, text
            for line in work:
                assert line.count("=") == len(EQUATION.findall(line)), line
                for left, right in EQUATION.findall(line):
                    assert evaluate(left) == int(right), line
                    steps += 1
            if asked := re.fullmatch(r"Question: What is (.+)\?", question):
                expression = asked[1]
                if remainder := re.fullmatch(r"the remainder of (\d+) divided by (\d+)", expression):
                    expression = f"{remainder[1]} % {remainder[2]}"
                assert evaluate(expression) == int(boxed[1]), text
                kinds += 1
    assert steps > 10_000 and kinds > 3000


def test_carries_and_borrows_are_the_written_ones() -> None:
    seen = 0
    for text in documents(seed=1, count=600):
        for question, *work, _ in problems(text):
            if not re.fullmatch(r"Question: What is \d+ \+ \d+\?", question) or not work[0].startswith("ones"):
                continue
            a, b = map(int, re.findall(r"\d+", question))
            carry, digits = 0, ""
            for place, line in enumerate(work[:-1]):
                total = a // 10**place % 10 + b // 10**place % 10 + carry
                assert f"= {total}, write " in line
                assert line.endswith(", carry 1") == (total > 9)
                carry, digits = total // 10, re.search(r"write (\d+)", line)[1] + digits  # type: ignore[index]
            assert int(("1" if carry else "") + digits) == a + b
            seen += 1
    assert seen > 100


def test_comparisons_and_stories() -> None:
    comparisons = stories = 0
    for text in documents(seed=2, count=600):
        for question, *work, answer in problems(text):
            boxed = re.search(r"\{(.+)\}", answer)[1]  # type: ignore[index]
            if asked := re.fullmatch(r"Question: Which is larger, (\d+) or (\d+)\?", question):
                a, b = int(asked[1]), int(asked[2])
                assert boxed == ("equal" if a == b else str(max(a, b)))
                assert work[-1] == f"{a} {'<' if a < b else '>' if a > b else '='} {b}"
                comparisons += 1
            elif asked := re.search(r"has (\d+) .+ gets (\d+) more and gives (\d+) away\.(?: A friend has (\d+) times)?", question):
                have, more, gone = map(int, asked.groups()[:3])
                assert int(boxed) == (have + more - gone) * int(asked[4] or 1)
                stories += 1
    assert comparisons > 100 and stories > 100


@given(st.integers(0, 2**40), st.integers(0, 10**9))
def test_a_document_depends_on_seed_and_number_only(seed: int, index: int) -> None:
    assert document(seed, index) == next(documents(seed, 1, start=index))


def test_ranges_join_and_seeds_differ() -> None:
    whole = list(documents(5, 40))
    assert whole == list(documents(5, 15)) + list(documents(5, 25, start=15))
    assert len(set(whole)) == 40
    assert not set(whole) & set(islice(documents(6, 40), 40))


def test_the_text_is_pinned() -> None:
    """A changed generator is a changed corpus: this text moves only on purpose."""
    assert document(0, 0) == PINNED


@pytest.mark.parametrize("count", [0, 1])
def test_small_counts(count: int) -> None:
    assert len(list(documents(0, count))) == count


PINNED = """Question: Which is larger, 75 or 8555?
75 has 2 digits, 8555 has 4 digits
75 < 8555
Answer: \\boxed{8555}

Question: What is 6841 * 8?
6841 * 8 = 54728
Answer: \\boxed{54728}

Question: What is 363 - 89 + 62?
363 - 89 = 274
274 + 62 = 336
363 - 89 + 62 = 336
Answer: \\boxed{336}

Question: What is 15 + 48 - 5?
15 + 48 = 63
63 - 5 = 58
15 + 48 - 5 = 58
Answer: \\boxed{58}

Question: What is 3 - 50?
ones: 0 + 10 - 3 = 7, borrow 1
tens: 5 - 0 - 1 = 4
50 - 3 = 47
3 is less than 50, so the sign is minus: 3 - 50 = -47
Answer: \\boxed{-47}

Question: Which is larger, 36 or 31?
first digits that differ: 6 and 1
36 > 31
Answer: \\boxed{36}
"""


def test_problems_of_a_kind_have_the_digits_asked_for():
    made = [synthetic.problem(0, index, ("addition", "comparison"), 2) for index in range(300)]
    assert {kind for kind, _ in made} == {"addition", "comparison"} and made == [
        synthetic.problem(0, i, ("addition", "comparison"), 2) for i in range(300)
    ]
    asked = [re.findall(r"\d+", text.splitlines()[0]) for _, text in made]
    assert max(len(number) for numbers in asked for number in numbers) == 2
