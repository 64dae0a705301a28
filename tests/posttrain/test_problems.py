"""Questions from JSON lines: every accepted form, every line that is left out with its reason; trusted generated tasks alone."""

import json

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.posttrain.problems import ALLOWED_TASKS, generate_problems, problem_of, read_problems


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
