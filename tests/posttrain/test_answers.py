"""answers.jsonl: whole lines, later rollouts forgotten on resume, a few rollouts read evenly."""

import json
import math

from rorqual.posttrain.answers import AnswersLog, read_answers, summary
from rorqual.posttrain.rewards import Judged, Outcome, unknown


def _records(rollout):
    return [{"rollout": rollout, "problem": str(n), "mean": math.nan, "text": "\u2603"} for n in range(2)]


def test_lines_of_rollouts_that_are_done_again_are_dropped(tmp_path):
    file = tmp_path / "answers.jsonl"
    log = AnswersLog(file, 0)
    for rollout in (1, 2, 3):
        log.write(_records(rollout))
    log.close()
    with file.open("a") as broken:
        broken.write('{"rollout": 1, "cut')
    AnswersLog(file, 2).close()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["rollout"] for row in rows] == [1, 1, 2, 2] and rows[0]["mean"] is None and rows[0]["text"] == "\u2603"


def test_a_few_rollouts_are_read_evenly(tmp_path):
    log = AnswersLog(tmp_path / "a.jsonl", 0)
    for rollout in range(1, 12):
        log.write(_records(rollout))
    log.close()
    assert [one[0]["rollout"] for one in read_answers(tmp_path / "a.jsonl", 3)] == [1, 6, 11]
    assert len(read_answers(tmp_path / "a.jsonl", 99)) == 11 and read_answers(tmp_path / "none", 3) == []


def test_a_summary_keeps_components_apart():
    """Two rewards that cancel: each has variance, the sum has none (and what nobody judged is counted)."""
    ups, downs = (0.0, 1.0, 1.0), (1.0, 0.0, 0.0)
    judged = [Judged(a + b, {"up": Outcome("right", a), "down": Outcome("right", b)}) for a, b in zip(ups, downs, strict=True)]
    judged.append(Judged(math.nan, {"up": Outcome("right", 1.0), "down": unknown("late")}))
    records = [{"signal": False, "answers": [{"tokens": n, "cut": n > 3} for n in (1, 2, 3, 4)]}]
    found = summary(records, judged)
    assert (found["reward_mean"], found["reward_std"], found["not_judged"]) == (1.0, 0.0, 1)
    assert found["components"]["up"]["std"] > 0.4 and found["components"]["down"] == {
        "mean": 1 / 3,
        "std": found["components"]["down"]["std"],
        "right": 3,
        "wrong": 0,
        "unknown": 1,
    }
    assert (found["groups"], found["groups_with_signal"], found["length_mean"], found["cut_share"]) == (1, 0, 2.5, 0.25)
