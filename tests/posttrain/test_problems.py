"""Questions from JSON lines: every accepted form, every line that is left out with its reason; trusted generated tasks alone."""

import gzip
import json
import os
from pathlib import Path

import pytest

from rorqual.errors import ConfigError, DataError, DeviceError
from rorqual.eval import sandbox
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import ALLOWED_TASKS, generate_problems, problem_of, read_problems
from rorqual.posttrain.rewards import Rewards
from rorqual.posttrain.rollout import Answer

DATA = Path(os.environ.get("RORQUAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def _write(tmp_path, lines):
    file = tmp_path / "p.jsonl"
    file.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return file


def test_forms_and_kinds():
    assert problem_of({"messages": [{"role": "user", "content": "1+1?"}], "answer": 2}).answer == "2"
    assert problem_of({"question": "q", "answer": "So 6.\n#### 6"}).answer == "6"
    code = problem_of({"prompt": "add", "tests": ["assert add(1, 2) == 3"], "entry_point": "add"})
    assert code.kind == "code" and code.data == {"tests": ["assert add(1, 2) == 3"], "entry_point": "add"} and code.question == "add"
    assert problem_of({"problem": "Sing."}).kind == "none"
    assert (
        problem_of(
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], "gold": "A", "kind": "choice"}
        ).question
        == "q"
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ([], "list"), ({"answer": "1"}, "content"), ({"prompt": "q", "answer": ""}, None), ({"prompt": "q", "answer": [1]}, "answer is a list"),
        ({"prompt": "q", "kind": "code"}, "needs tests"), ({"prompt": "q", "kind": "riddle"}, "must be one of"), ({"messages": []}, "no messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must be a user's"), ({"messages": [{"role": "boss", "content": "a"}]}, "role"),
        ({"prompt": "q", "kind": "math"}, "needs an answer"), ({"prompt": "q", "tests": {"a": 1}}, "tests must be text"), ({"prompt": "q", "tests": [1]}, "list of texts"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_used_say_why(line, why):
    if why is None:
        assert problem_of(line).kind == "none"
        return
    with pytest.raises(DataError, match=why):
        problem_of(line)


HUMANEVAL = {
    "task_id": "HumanEval/900", "entry_point": "twice", "prompt": "from typing import List\n\ndef twice(x: int) -> int:\n    \"\"\"2 x\"\"\"\n",
    "canonical_solution": "    return 2 * x\n", "test": "def check(candidate):\n    assert candidate(4) == 8\n",
}  # fmt: skip
MBPP = {
    "task_id": 901, "text": "Write a function to add.", "code": "def sum(a, b):\r\n  return a + b", "test_setup_code": "one = 1",
    "test_list": ["assert sum(1, 2) == 3", "assert sum(one, 1) == 2", "assert sum(0, 0) == 0", "assert sum(5, 5) == 10"], "challenge_test_list": ["assert sum(-1, 1) == 0"],
}  # fmt: skip


def test_humaneval_and_mbpp_are_read_as_published(tmp_path):
    file = tmp_path / "HumanEval.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode() + b"\n" + json.dumps(MBPP).encode()))
    one, two = read_problems(file).items
    assert (one.id, one.kind, one.answer) == ("HumanEval/900", "code", None)
    assert one.question.endswith("```python\n" + HUMANEVAL["prompt"] + "```")
    assert one.data == {
        "tests": HUMANEVAL["test"] + "\ncheck(twice)\n", "entry_point": "twice", "context": HUMANEVAL["prompt"],
        "solution": "```python\n" + HUMANEVAL["prompt"] + "    return 2 * x\n```",
    }  # fmt: skip
    assert two.id == "901" and "sum(0, 0)" in two.question and "sum(5, 5)" not in two.question
    assert two.data["tests"] == ["one = 1", *MBPP["test_list"], *MBPP["challenge_test_list"]]
    assert two.data["entry_point"] == "sum"  # a name of Python's own has to be said
    assert "solution" not in problem_of({**MBPP, "code": None}).data
    file.write_bytes(gzip.compress(b"{}")[:-9])
    with pytest.raises(DataError, match="cannot read"):
        read_problems(file)


def test_the_published_solutions_are_right_and_others_wrong():
    try:
        sandbox.Sandbox()
    except DeviceError as error:
        pytest.skip(f"no sandbox here: {error}")
    judge = Rewards(GRPOConfig(rewards={"code": 1.0}))
    texts = [(problem_of(raw), change) for raw, change in ((HUMANEVAL, ("", "")), (MBPP, ("a + b", "a - b")))]
    cases = [(one, Answer((1,), (2,), False, content=one.data["solution"].replace(*change))) for one, change in texts]
    assert [judged.reward for judged in judge.judge_all(cases)] == [1.0, 0.0]
    judge.close()


@pytest.mark.slow
@pytest.mark.parametrize(("file", "count"), [("humaneval/HumanEval.jsonl.gz", 164), ("mbpp/mbpp.jsonl", 974)])
def test_the_published_files_are_read_whole_and_their_solutions_pass(file, count):
    if not (DATA / file).is_file():
        pytest.skip(f"{file} is not at {DATA} (RORQUAL_DATA)")
    found = read_problems(DATA / file)
    assert len(found.items) + sum(found.rejected.values()) == count and not found.rejected
    judge = Rewards(GRPOConfig(rewards={"code": 1.0}))
    cases = [(one, Answer((1,), (2,), False, content=one.data["solution"])) for one in found.items[:: count // 82]]
    wrong = [one.id for (one, _), judged in zip(cases, judge.judge_all(cases), strict=True) if judged.reward != 1.0]
    judge.close()
    assert not wrong


def test_bad_lines_are_counted_by_reason_and_nothing_is_lost(tmp_path):
    good = {"prompt": "1+1?", "answer": "2"}
    file = _write(tmp_path, [good, b"{", b"\xff\xfe", good, {"prompt": "2+2?", "answer": "4", "id": 7}, b""])
    found = read_problems(file)
    assert [one.answer for one in found.items] == ["2", "4"] and found.items[1].id == "7"
    assert found.rejected == {"not JSON": 1, "not UTF-8": 1, "the same id or question again": 1}
    assert found.examples["not UTF-8"].endswith(":3")
    assert read_problems(file).fingerprint == found.fingerprint
    assert read_problems(_write(tmp_path, [good])).fingerprint != found.fingerprint
    with pytest.raises(DataError, match="no problem that can be used"):
        read_problems(_write(tmp_path, [b"{"]))
    with pytest.raises(DataError, match="cannot read"):
        read_problems(tmp_path / "none.jsonl")


def test_tasks_outside_the_list_are_refused():
    assert "countdown" not in ALLOWED_TASKS and "n_queens" not in ALLOWED_TASKS
    with pytest.raises(ConfigError, match="countdown"):
        generate_problems(["chain_sum", "countdown"], 1, 0)
    with pytest.raises(ConfigError, match="none"):
        generate_problems([], 1, 0)


@pytest.mark.peer
def test_generated_problems_take_turns_and_repeat():
    pytest.importorskip("reasoning_gym", reason="the generator")
    made = generate_problems(["chain_sum", "leg_counting"], 3, 5)
    assert [one.data["task"] for one in made.items] == ["chain_sum", "leg_counting"] * 3
    assert made.fingerprint == generate_problems(["chain_sum", "leg_counting"], 3, 5).fingerprint
