"""Ten words in a row of an evaluation file keep a text out (DeepSeekMath section 2.1)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rorqual.errors import DataError
from rorqual.posttrain.decontaminate import EvaluationText

DATA = Path(os.environ.get("RORQUAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
TEN = "one two three four five six seven eight nine ten"


def _lines(file, rows):  # type: ignore[no-untyped-def]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_ten_words_in_a_row_are_found_whatever_case_and_punctuation(tmp_path):
    known = EvaluationText.read(
        [_lines(tmp_path / "a.jsonl", [{"question": f"Zero {TEN} eleven", "meta": {"deep": ["short words here"]}}])]
    )
    assert known.found("Well: ONE, two; three (four) five six seven eight nine... ten!") == TEN
    assert known.found("one two three four five six seven eight nine") == ""  # nine are not enough
    assert known.found("two one three four five six seven eight nine ten") == ""
    assert known.files[0] | {"sha256": "", "path": ""} == {
        "path": "", "sha256": "", "texts": 2, "grams": 3, "short_texts": 1, "common_grams_ignored": 0,
    }  # fmt: skip


def test_short_texts_are_compared_whole_from_three_words_on(tmp_path):
    known = EvaluationText.read([_lines(tmp_path / "a.jsonl", [{"q": "Who sang it?"}, {"q": "Two words"}])])
    assert known.found("who sang it") == "who sang it"
    assert known.found("who sang it then") == ""
    assert known.found("two words") == ""


def test_the_wording_of_prompts_is_not_content(tmp_path):
    rows = [{"q": f"Please solve the following problem and put the answer in a box: item number {n}"} for n in range(20)]
    known = EvaluationText.read([_lines(tmp_path / "a.jsonl", rows)])
    assert known.found("Please solve the following problem and put the answer in a box: 1 + 1") == ""
    assert known.found("and put the answer in a box: item number 7") == "and put the answer in a box item number 7"


def test_other_kinds_of_files_and_folders(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"items": [f"a {TEN}"]}), encoding="utf-8")
    (tmp_path / "b.csv").write_text(f'id,text\n1,"b {TEN}"\n', encoding="utf-8")
    (tmp_path / "c.txt").write_text(f"c {TEN}\n\nother", encoding="utf-8")
    _lines(tmp_path / "d.json", [{"q": f"d {TEN}"}, {"q": "x"}])
    (tmp_path / "e.bin").write_bytes(b"\xff\xfe")
    known = EvaluationText.read([tmp_path])
    assert [Path(one["path"]).name for one in known.files] == ["a.json", "b.csv", "c.txt", "d.json"]
    for letter in "abcd":
        assert known.found(f"{letter} one two three four five six seven eight nine").startswith(letter)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{not json\n", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"bad\.jsonl cannot be read"):
        EvaluationText.read([tmp_path / "bad.jsonl"])
    with pytest.raises(DataError, match="neither a file nor a folder"):
        EvaluationText.read([tmp_path / "nothing"])
    with pytest.raises(DataError, match="has no file that ends"):
        EvaluationText.read([tmp_path / "empty"])


@pytest.mark.skipif(not (DATA / "gsm8k" / "test.jsonl").is_file(), reason=f"gsm8k is not at {DATA} (RORQUAL_DATA)")
def test_a_real_test_set_finds_itself_and_not_its_training_set():
    known = EvaluationText.read([DATA / "gsm8k" / "test.jsonl"])
    test, train = (
        [json.loads(line)["question"] for line in (DATA / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:200]]
        for name in ("test", "train")
    )
    assert all(known.found(question) for question in test)
    assert sum(bool(known.found(question)) for question in train) <= 2
