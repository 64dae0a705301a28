"""MGSM: prompts in eleven languages, values."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.tasks import catalog
from tests.eval import small
from tests.eval.tasks import fixture


def test_prompt_bytes_and_scores(tmp_path):
    (tmp_path / "mgsm_de.tsv").write_text("".join(f"Wie viele {n}?\t{1000 + n:,}\n" for n in range(5)))
    task = catalog.task("mgsm_de")
    items = task.items(tmp_path, 1)
    assert task.shots == 8 and items[0].prompt == "Frage: Wie viele 1?\nAntwort:1001\n\nFrage: Wie viele 0?\nAntwort:"
    found = fixture.answered(task, tmp_path, [" 1000", "1,001", "1002 nein 1003", "keine", " 1004."])
    assert fixture.scores(found, "exact_match") == [1.0, 1.0, 0.0, 0.0, 1.0] and found["unparseable_rate"] == 0.2


def test_a_malformed_row_is_refused(tmp_path):
    (tmp_path / "mgsm_de.tsv").write_text("Wie viele?\t1\t2\n")
    with pytest.raises(DataError, match="row 1: 3 columns, 2 are required"):
        catalog.task("mgsm_de").items(tmp_path)


@small.needs_data
def test_eleven_languages_of_250():
    assert {len(catalog.task(name).items(small.DATA)) for name in catalog.GROUPS["mgsm"]} == {250} and len(catalog.GROUPS["mgsm"]) == 11
