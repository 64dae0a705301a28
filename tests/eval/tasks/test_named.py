"""Rows of the report's tables through the generic tasks: five items each in upstream's schema, prompt bytes and scores by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval.tasks import fixture

FOUR = {"A": "ape", "B": "bat", "C": "cat", "D": "dog"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "race_high": [{"example_id": f"{n}.txt", "article": "Whales sing.", "question": f"Who {n}?", "options": ["ape", "bat", "cat", "dog"], "answer": "ABCDA"[n]} for n in range(5)],
    "ceval": [{"id": n, "question": f"哪个{n}？", **FOUR, "answer": "ABCDA"[n], "explanation": "", "subject": "法学"} for n in range(5)],
    "cmmlu": [{"Question": f"哪个{n}？", **FOUR, "Answer": "ABCDA"[n], "subject": "解剖学"} for n in range(5)],
    "mmmlu": [{"Question": f"Wer {n}?", **FOUR, "Answer": "ABCDA"[n], "Subject": "anatomy"} for n in range(5)],
    "c3": [{"context": "鲸鱼唱歌。", "question": f"谁{n}？", "choice": ["猿", "蝠", "猫", "狗"], "answer": ["猿", "蝠", "猫", "狗", "猿"][n]} for n in range(5)],
    "ccpm": [{"translation": f"鲸鱼{n}", "choices": ["猿", "蝠", "猫", "狗"], "answer": n % 4} for n in range(5)],
}  # fmt: skip
ROWS["race_middle"] = ROWS["race_high"]

PROMPTS = {
    "race_high": ("Article: Whales sing.\n\nWho 1? bat\n\nArticle: Whales sing.\n\nWho 0?", " ape", 5),
    "ceval": ("以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n哪个1？\nA. ape\nB. bat\nC. cat\nD. dog\n答案： B\n\n哪个0？\nA. ape\nB. bat\nC. cat\nD. dog\n答案：", " A", 5),
    "cmmlu": ("以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n\n哪个1？\nA. ape\nB. bat\nC. cat\nD. dog\n答案： B\n\n哪个0？\nA. ape\nB. bat\nC. cat\nD. dog\n答案：", " A", 5),
    "mmmlu": ("Wer 1?\nA. ape\nB. bat\nC. cat\nD. dog\nAnswer: B\n\nWer 0?\nA. ape\nB. bat\nC. cat\nD. dog\nAnswer:", " A", 5),
    "c3": ("鲸鱼唱歌。\n\n谁1？\n答：蝠\n\n鲸鱼唱歌。\n\n谁0？\n答：", "猿", 0),
    "ccpm": ("鲸鱼1\n对应的诗句：蝠\n\n鲸鱼0\n对应的诗句：", "猿", 0),
}  # fmt: skip
PROMPTS["race_middle"] = PROMPTS["race_high"]


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_bytes(name, tmp_path):
    task = catalog.task(name)
    context, first, shots = PROMPTS[name]
    assert task.shots == shots
    assert task.items(fixture.put(tmp_path, f"{name}/test.jsonl", ROWS[name]), 1)[0].pairs[0] == (context, first)


@pytest.mark.parametrize("name", PROMPTS)
def test_choices(name, tmp_path):
    """The second choice is always the most likely: right for item 1 alone; item 4 fails."""
    second = {"race_middle": " bat", "race_high": " bat", "c3": "蝠", "ccpm": "蝠"}.get(name, " B")
    last = {"c3": "谁4", "ccpm": "鲸鱼4", "mmmlu": "Wer 4", "ceval": "哪个4", "cmmlu": "哪个4"}.get(name, "Who 4")
    found = fixture.chosen(
        catalog.task(name), fixture.put(tmp_path, f"{name}/test.jsonl", ROWS[name]),
        lambda context, end: fixture.FAILED if last in context else -1.0 if end == second else -2.0,
    )  # fmt: skip
    assert fixture.scores(found, "acc") == [0.0, 1.0, 0.0, 0.0, None] and found["metrics"]["acc"]["value"] == 0.25 and found["failed"] == 1


@pytest.mark.parametrize("name", PROMPTS)
def test_malformed_choices_are_refused(name, tmp_path):
    key = "Answer" if "Answer" in ROWS[name][0] else "answer"
    for value, message in (
        (None, f"field '{key}' is missing"),
        ("zebra", "is no letter, no number and none of the choices"),
        (9, "right one 9"),
    ):
        row = {**ROWS[name][0], key: value}
        if value is None:
            del row[key]
        with pytest.raises(DataError, match=message):
            catalog.task(name).items(fixture.put(tmp_path, f"{name}/test.jsonl", [row]), 0)


ANSWERED = {
    # prompt of the first item; what is said; scores; shots
    "cluewsc": ([{"question": f"它{n}指的是鲸鱼吗？", "answer": "是" if n < 3 else "否"} for n in range(5)], "它0指的是鲸鱼吗？\n答案：", ["是。", "否", " ", "否\n", fixture.FAILED], [1.0, 0.0, 0.0, 1.0, None], 5),
    "cmrc": ([{"id": f"D{n}", "context": "座头鲸在海里。", "question": "谁？", "answers": ["座头鲸", "鲸"]} for n in range(5)], "座头鲸在海里。\n\n谁？\n答案：", ["座头鲸", "《鲸》", "海", "", "座头"], [1.0, 1.0, 0.0, 0.0, 0.0], 1),
    "simpleqa": ([{"metadata": "{}", "problem": f"Who {n}?", "answer": "The Whale"} for n in range(5)], "Who 0?\nAnswer:", [" whale.", " a bat", "...", " THE WHALE!", fixture.FAILED], [1.0, 0.0, 0.0, 1.0, None], 0),
    "aime": ([{"id": n, "problem": f"Find {n}.", "answer": str(n + 10)} for n in range(5)], "Question: Find 0.\nAnswer:", [r"so \boxed{010}", r"\boxed{12}", "12", r"\boxed{}", "The answer is 14."], [1.0, 0.0, 0.0, 0.0, 1.0], 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERED)
def test_answers(name, tmp_path):
    rows, prompt, said, wanted, shots = ANSWERED[name]
    task = catalog.task(name)
    fixture.put(tmp_path, f"{name}/test.jsonl", rows)
    assert task.shots == shots and task.items(tmp_path, 0)[0].prompt == prompt
    found = fixture.answered(task, tmp_path, said)
    assert fixture.scores(found, "exact_match") == wanted and found["failed"] == wanted.count(None)
    assert found["unparseable_rate"] == (0.4 if name == "aime" else 0.2)


@pytest.mark.parametrize("name", ANSWERED)
def test_malformed_answers_are_refused(name, tmp_path):
    row = json.loads(json.dumps(ANSWERED[name][0][0]))
    key = "answers" if "answers" in row else "answer"
    with pytest.raises(DataError, match=f"'{key}' is empty"):
        catalog.task(name).items(fixture.put(tmp_path, f"{name}/test.jsonl", [{**row, key: " "}]), 0)
    del row[key]
    with pytest.raises(DataError, match=f"field '{key}' is missing"):
        catalog.task(name).items(fixture.put(tmp_path, f"{name}/test.jsonl", [row]), 0)
