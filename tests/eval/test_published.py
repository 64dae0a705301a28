"""The report's figures: a few by value, every task named there exists, and marks for what cannot be run."""

from __future__ import annotations

from rorqual.eval import published
from rorqual.eval.tasks import catalog
from tests.eval import small


def test_values_of_the_tables():
    base, chat, aider = published.tables()
    assert base.models[-1] == "DeepSeek-V3-Base" and chat.models[-1] == "DeepSeek-V3" and len(base.rows) == 32 and len(chat.rows) == 22
    values = {row.benchmark: row for row in base.rows}
    assert values["Pile-test"].values == [0.606, 0.638, 0.542, 0.548] and values["GSM8K"].shots == 8
    assert values["CRUXEval-I"].values[-1] == 67.3 and values["CRUXEval-O"].values[-1] == 69.8
    talk = {row.benchmark: row for row in chat.rows}
    assert talk["Aider-Polyglot"].values == [None, 18.2, 7.6, 5.8, 45.3, 16.0, 49.6]
    assert [row.values[-1] for row in aider.rows] == [48.4, 22.7, 98.7] and "polyglot_leaderboard.yml" in aider.source
    assert "2412.19437" in base.source and "table 3" in base.source and "table 6" in chat.source


def test_every_task_named_exists_and_has_the_reports_shots():
    known = {*catalog.names(), *catalog.GROUPS}
    for table in published.tables():
        for row in table.rows:
            assert row.task is None or row.task in known, row
    for row in published.tables()[0].rows:
        if row.task is not None and row.shots is not None:
            for name in catalog.GROUPS.get(row.task, (row.task,)):
                assert catalog.task(name).shots == row.shots, row


def test_marks(tmp_path):
    rows = {row.benchmark: row for table in published.tables() for row in table.rows}
    assert published.status(rows["SWE Verified"]) == "no harness"
    assert published.status(rows["HellaSwag"], tmp_path) == "hellaswag: data to be supplied"
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag" / "hellaswag_val.jsonl").write_text("")
    assert published.status(rows["HellaSwag"], tmp_path) == "hellaswag"
    assert "no harness" in published.report(tmp_path)


@small.needs_data
def test_marks_on_the_bundled_data():
    rows = {row.benchmark: row for table in published.tables() for row in table.rows}
    assert published.status(rows["ARC-Easy"], small.DATA) == "arc_easy" and published.status(rows["MGSM"], small.DATA) == "mgsm"


def test_our_figures_stand_beside_theirs():
    metric = {"acc": {"value": 0.25, "stderr": 0.1, "n": 4}}
    text = published.beside({"arc_easy": {"n": 4, "metrics": metric}, "copa": {"n": 4, "metrics": metric}})
    line = next(line for line in text.splitlines() if line.startswith("ARC-Easy"))
    assert line.split()[2:] == ["25", "25.0", "97.6", "98.4", "98.4", "98.9"]
    assert published.beside({"copa": {"n": 4, "metrics": metric}}) == "none of these tasks is in the report's tables"


def test_of_two_attempts_each_row_takes_its_own():
    values = {"pass@2": 0.5, "well_formed": 1.0, "pass_rate_1": 0.25, "pass_rate_2": 0.5}
    metrics = {name: {"value": value, "stderr": 0.1, "n": 4} for name, value in values.items()}
    text = published.beside({name: {"n": 4, "metrics": metrics} for name in catalog.GROUPS["polyglot"]})
    shown = [line.partition(")")[2].split()[1] for line in text.splitlines() if line.startswith(("Aider-", "Aider polyglot,"))]
    assert shown == ["50.0", "50.0", "25.0", "100.0"]
