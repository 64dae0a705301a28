"""answers.jsonl: whole lines, later rollouts forgotten on resume, a few rollouts read evenly."""

import json
import math

from rorqual.posttrain.answers import AnswersLog, read_answers


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
