"""From drafts to data: each draft's fate, two variants, a manifest that adds up, and calls that go on where they were stopped."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import ConfigError, DeviceError, RunError
from rorqual.eval.sandbox import Sandbox
from rorqual.posttrain.decontaminate import EvaluationText
from rorqual.posttrain.distill import SYSTEM, DistillConfig, Sources, distill, originals_of
from rorqual.posttrain.filters import FilterConfig
from rorqual.posttrain.generate import Drawing, TeacherGone
from rorqual.posttrain.judge import Judge, JudgeConfig
from rorqual.posttrain.problems import Problems, problem_of, read_problems
from rorqual.posttrain.rewards import Outcome, unknown
from rorqual.posttrain.sft_config import RenderConfig
from rorqual.posttrain.sft_data import samples_of
from tests.posttrain.teachers import Scripted, draft
from tests.tokenizer.samples import tokenizer


def holds() -> bool:
    """Whether this machine has a sandbox."""
    try:
        Sandbox().close()
    except DeviceError:
        return False
    return True


HOW = Drawing(n=6, temperature=1.0)
LOOP = "again and again " * 12
CASES = {
    "sum": [
        draft("It is \\boxed{5}.", "long reasoning that says little but says it at length"), draft("It is \\boxed{5}.", "2 and 3"),
        draft("It is \\boxed{6}.", "guess"), draft("It is \\boxed{5}.", "2 and  3"), draft("It is", "cut off", cut=True),
        draft("It is \\boxed{5}.", LOOP),
    ],
}  # fmt: skip


def _problems(*raw):  # type: ignore[no-untyped-def]
    return Problems([problem_of(one) for one in raw], {}, {})


SUM = {"id": "sum", "prompt": "What is 2 + 3?", "answer": 5, "response": "5, \\boxed{5}"}


def _lines(file):  # type: ignore[no-untyped-def]
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _run(out, problems, say, sources=None, **changes):  # type: ignore[no-untyped-def]
    return distill(problems, Scripted(say), out, DistillConfig(**{"drawing": HOW, **changes}), sources)


def test_every_draft_has_one_fate_and_the_shortest_good_one_is_kept(tmp_path):
    problems = _problems(SUM)
    manifest = _run(tmp_path / "out", problems, lambda name, _, n: CASES[name][n], Sources(originals={"sum": "5, \\boxed{5}"}))
    assert manifest["counts"]["drafts"] == {
        "reasoned": {"cut": 1, "duplicate": 1, "kept": 1, "not picked": 1, "repetition": 1, "wrong": 1},
        "original": {"kept": 1},
    }
    question = {"role": "user", "content": "What is 2 + 3?"}
    rows = _lines(tmp_path / "out" / "sft.jsonl")
    assert [row["messages"] for row in rows] == [
        [question, {"role": "assistant", "content": "5, \\boxed{5}"}],
        [
            {"role": "system", "content": SYSTEM},
            question,
            {"role": "assistant", "content": "It is \\boxed{5}.", "reasoning_content": "2 and 3"},
        ],
    ]
    assert [row["source"] for row in rows] == [
        {"problem": "sum", "domain": "math", "variant": "original", "draft": 0, "by": "file"}, {"problem": "sum", "domain": "math", "variant": "reasoned", "draft": 1, "by": "teacher"},
    ]  # fmt: skip
    pair = _lines(tmp_path / "out" / "pairs.jsonl")[0]
    assert (pair["chosen"], pair["rejected"], pair["reference"]) == ("It is \\boxed{5}.", "It is \\boxed{6}.", "5")
    assert manifest["files"]["sft.jsonl"]["lines"] == 2 and manifest["counts"]["problems_solved"] == 1
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8")) == manifest


def test_the_rows_are_what_sft_takes_and_the_reasoning_is_learned(tmp_path):
    _run(tmp_path / "out", _problems(SUM), lambda name, _, n: CASES[name][n])
    row = _lines(tmp_path / "out" / "sft.jsonl")[0]
    sample = next(samples_of(row, tokenizer(), RenderConfig(style="r1")))
    learned = tokenizer().decode([number for number, own in zip(sample.ids, sample.learned, strict=True) if own])
    assert "2 and 3" in learned and "\\boxed{5}" in learned and "Reflect" not in learned


def test_the_same_records_give_the_same_files(tmp_path):
    for name in ("a", "b"):
        _run(tmp_path / name, _problems(SUM), lambda name, _, n: CASES[name][n])
    for file in ("sft.jsonl", "pairs.jsonl", "answers.jsonl", "manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_teacher_that_goes_away_loses_nothing_and_the_next_call_goes_on(tmp_path):
    raw = [{"id": str(n), "prompt": f"What is {n} + 1?", "answer": n + 1} for n in range(5)]
    config = DistillConfig(drawing=Drawing(n=1))

    def say(name, messages, _):  # type: ignore[no-untyped-def]
        return f"The sum is \\boxed{{{int(name) + 1}}}, to {messages[-1]['content']}"

    first = Scripted(say, lasts=2)
    with pytest.raises(TeacherGone, match=r"answers to 2 of 5 problems are in .*answers\.jsonl\.partial; the same command goes on"):
        distill(_problems(*raw), first, tmp_path / "out", config)
    second = Scripted(say)
    shown = []
    manifest = distill(_problems(*raw), second, tmp_path / "out", config, show=lambda *now: shown.append(now))
    assert (first.asked, second.asked) == (["0", "1"], ["2", "3", "4"])
    assert manifest["counts"]["problems_solved"] == 5 and shown[0] == ("reasoned", 2, 5) and shown[-1] == ("reasoned", 5, 5)
    distill(_problems(*raw), Scripted(say), tmp_path / "whole", config)
    assert (tmp_path / "out" / "sft.jsonl").read_bytes() == (tmp_path / "whole" / "sft.jsonl").read_bytes()
    with pytest.raises(RunError, match="finished distillation"):
        distill(_problems(*raw), second, tmp_path / "out", config)


def test_other_problems_or_draws_are_not_mixed_into_a_run_under_way(tmp_path):
    with pytest.raises(TeacherGone):
        distill(
            _problems(SUM, {"prompt": "b", "answer": 1}), Scripted(lambda *_: "x", lasts=1), tmp_path, DistillConfig(drawing=Drawing(n=1))
        )
    with pytest.raises(RunError, match="differs in drawing"):
        distill(
            _problems(SUM, {"prompt": "b", "answer": 1}), Scripted(lambda *_: "x"), tmp_path, DistillConfig(drawing=Drawing(n=1, seed=1))
        )


def test_problems_and_answers_of_evaluation_files_are_left_out(tmp_path):
    known = "a train leaves the station at nine with eleven whales aboard"
    (tmp_path / "eval.txt").write_text(known, encoding="utf-8")
    problems = _problems(SUM, {"id": "known", "prompt": f"Say: {known}!", "answer": 1})
    teacher = Scripted(lambda name, _, n: draft("It is \\boxed{5}.", known if n else "by hand"))
    sources = Sources(evaluation=EvaluationText.read([tmp_path / "eval.txt"]))
    manifest = distill(problems, teacher, tmp_path / "out", DistillConfig(drawing=Drawing(n=2)), sources)
    assert teacher.asked == ["sum"]
    assert manifest["counts"]["problems_in_evaluation_data"] == 1
    assert manifest["counts"]["drafts"]["reasoned"] == {"in evaluation data": 1, "kept": 1}
    assert set(manifest["evaluation_matches"]) == {"known", "sum (reasoned)"} and manifest["evaluation_files"][0]["grams"] == 2


def test_a_reward_model_judges_what_no_rule_can_and_ranks(tmp_path):
    problems = _problems({"id": "poem", "prompt": "A poem, please."})
    poems = [draft("bad verse"), draft("the best verse of all"), draft("good verse"), draft("odd verse")]
    values = {"bad verse": 0.2, "the best verse of all": 0.9, "good verse": 0.7}

    def reward(problem, answer):  # type: ignore[no-untyped-def]
        return Outcome("right", values[answer.content]) if answer.content in values else unknown("odd")

    def say(name, messages, n):  # type: ignore[no-untyped-def]
        return poems[n]

    manifest = _run(tmp_path / "a", problems, say, Sources(reward=reward), drawing=Drawing(n=4), pick="reward")
    assert manifest["counts"]["drafts"]["reasoned"] == {"kept": 1, "low reward": 1, "not judged": 1, "not picked": 1}
    assert _lines(tmp_path / "a" / "sft.jsonl")[0]["messages"][-1]["content"] == "the best verse of all"
    with pytest.raises(ConfigError, match="none has one"):
        _run(tmp_path / "b", problems, say)
    with pytest.raises(ConfigError, match="needs a reward model"):
        _run(tmp_path / "b", problems, say, pick="reward")
    manifest = _run(tmp_path / "c", problems, say, drawing=Drawing(n=4), unjudged="keep", keep=9)
    assert manifest["counts"]["drafts"]["reasoned"] == {"kept": 4}


def test_a_judge_that_goes_away_ends_the_call_and_loses_nothing(tmp_path):
    problems = _problems({"id": "a", "prompt": "A?"}, {"id": "b", "prompt": "B?"})
    teacher = Scripted(lambda name, *_: f"an answer to {name}")
    dying = Judge(_Dying(), JudgeConfig(votes=1))
    config = DistillConfig(drawing=Drawing(n=1))
    with pytest.raises(TeacherGone, match="answers to 1 of 2 problems"):
        distill(problems, teacher, tmp_path, config, Sources(reward=dying))
    manifest = distill(problems, teacher, tmp_path, config, Sources(reward=dying))
    assert manifest["counts"]["drafts"]["reasoned"] == {"kept": 2} and teacher.asked == ["a", "b", "b"]


class _Dying(Scripted):
    """Goes away at the second question, once."""

    def __init__(self) -> None:
        super().__init__(lambda *_: "Score: 9")
        self.calls = 0

    def draw(self, asked, how):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls == 2:
            raise TeacherGone("it has gone")
        yield from super().draw(asked, how)


def test_ctrl_c_loses_nothing(tmp_path):
    def say(name, *_):  # type: ignore[no-untyped-def]
        if name == "b":
            raise KeyboardInterrupt
        return f"\\boxed{{5}} {name}"

    problems = _problems(SUM, {"id": "b", "prompt": "B?", "answer": 5})
    with pytest.raises(KeyboardInterrupt):
        distill(problems, Scripted(say), tmp_path, DistillConfig(drawing=Drawing(n=1)))
    teacher = Scripted(lambda name, *_: f"\\boxed{{5}} {name}")
    distill(problems, teacher, tmp_path, DistillConfig(drawing=Drawing(n=1)))
    assert teacher.asked == ["b"]


def test_diverse_answers_are_those_least_alike(tmp_path):
    way = "count up from two by one and one and one to get five"
    drafts = [
        draft("\\boxed{5}", way),
        draft("\\boxed{5}", way + " now"),
        draft("\\boxed{5}", "three and two make five since the order of a sum is free to choose here"),
    ]
    manifest = _run(tmp_path, _problems(SUM), lambda name, _, n: drafts[n], drawing=Drawing(n=3), pick="diverse", keep=3)
    assert manifest["counts"]["drafts"]["reasoned"] == {"kept": 2, "not picked": 1}
    assert [row["source"]["draft"] for row in _lines(tmp_path / "sft.jsonl")] == [0, 2]


def test_an_original_teacher_is_asked_plainly_and_verified(tmp_path):
    original = Scripted(lambda *_: "five: \\boxed{5}")
    config = DistillConfig(drawing=Drawing(n=1), ask_with_system=True, system="Think.")
    teacher = Scripted(lambda *_: draft("\\boxed{5}", "2, 3"))
    distill(_problems(SUM), teacher, tmp_path, config, Sources(original=original))
    assert [m["role"] for m in teacher.messages[0]] == ["system", "user"] and [m["role"] for m in original.messages[0]] == ["user"]
    assert [row["source"]["by"] for row in _lines(tmp_path / "sft.jsonl")] == ["original teacher", "teacher"]


def test_a_question_that_cannot_be_answered_is_counted(tmp_path):
    manifest = _run(
        tmp_path,
        _problems(SUM, {"id": "x", "prompt": "b", "answer": 1}),
        lambda name, _, n: ValueError("too long") if name == "x" else CASES[name][n],
    )
    assert manifest["counts"]["drafts"]["reasoned"]["failed"] == 1
    assert _lines(tmp_path / "answers.jsonl")[1] == {"stage": "reasoned", "id": "x", "failed": "too long"}


def test_filters_may_change_between_two_calls(tmp_path):
    with pytest.raises(TeacherGone):
        distill(
            _problems(SUM, {"prompt": "b", "answer": 1}),
            Scripted(lambda *_: "\\boxed{5}", lasts=1),
            tmp_path,
            DistillConfig(drawing=Drawing(n=1)),
        )
    config = DistillConfig(drawing=Drawing(n=1), filters=FilterConfig(min_tokens=5))
    manifest = distill(_problems(SUM, {"prompt": "b", "answer": 1}), Scripted(lambda *_: "\\boxed{1}"), tmp_path, config)
    assert manifest["counts"]["drafts"]["reasoned"] == {"length": 2}


def test_originals_of_a_file(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        json.dumps({"question": "How many?", "answer": "48/2=<<48/2=24>>24 clips\n#### 24"}) + "\n" + json.dumps({**SUM, "id": "s"}) + "\n",
        encoding="utf-8",
    )
    problems = read_problems(file)
    assert originals_of(file, problems) == {problems.items[0].id: "48/2=24 clips\n\\boxed{24}", "s": "5, \\boxed{5}"}


@pytest.mark.skipif(not holds(), reason="no sandbox holds on this machine")
def test_programs_are_run_against_their_tests(tmp_path):
    programs = [
        "def add(a, b):\n    return a + b", "def add(a, b):\n    return a - b", "import os\nos._exit(0)",
        "class Same:\n    def __eq__(self, other):\n        return True\n\ndef add(a, b):\n    return Same()",
    ]  # fmt: skip
    problem = {"id": "add", "prompt": "Write add(a, b) in Python.", "tests": ["assert add(2, 3) == 5", "assert add(-1, 1) == 0"]}
    manifest = _run(tmp_path, _problems(problem), lambda name, _, n: f"```python\n{programs[n]}\n```", drawing=Drawing(n=4), keep=4)
    assert manifest["counts"]["drafts"]["reasoned"] == {"kept": 1, "wrong": 3}
    assert _lines(tmp_path / "sft.jsonl")[0]["source"] == {
        "problem": "add",
        "domain": "code",
        "variant": "reasoned",
        "draft": 0,
        "by": "teacher",
    }
