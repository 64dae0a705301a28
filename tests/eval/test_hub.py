"""Hugging Face data sets as task files: names, field maps, a local folder of Parquet files, a stubbed loader, and no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rorqual.errors import ConfigError, DataError, MissingExtraError
from rorqual.eval import hub
from rorqual.eval.tasks import catalog

SUMS = [{"problem": f"{n}+1?", "solution": {"text": f"so it is\n#### {n + 1}"}} for n in range(4)]
FIELDS = {"question": "problem", "answer": "solution.text"}


class Loader:
    """In the place of `datasets`: splits by name, each a list of rows, or an error to raise."""

    def __init__(self, splits: dict[str, list[dict[str, Any]]] | Exception, version: str = "5.0.0") -> None:
        self.splits, self.asked, self.__version__ = splits, [], version

    def get_dataset_split_names(self, name: str, config: str | None) -> list[str]:
        if isinstance(self.splits, Exception):
            raise self.splits
        return list(self.splits)

    def load_dataset(self, name: str, config: str | None, *, split: str) -> Any:
        self.asked.append((name, config, split))
        plain, _, cut = split.partition("[:")
        assert isinstance(self.splits, dict)
        rows = [row for part in plain.split("+") for row in self.splits[part]]
        return rows[: int(cut[:-1])] if cut else rows


def _use(monkeypatch: pytest.MonkeyPatch, loader: Any) -> Any:
    monkeypatch.setitem(sys.modules, "datasets", loader)
    return loader


def test_a_name_a_configuration_and_a_split(monkeypatch, tmp_path):
    loader = _use(monkeypatch, Loader({"test": SUMS[:2], "train": SUMS[2:]}))
    task, said = hub.fetch(catalog.task("gsm8k"), "hf:someone/sums:easy", FIELDS, tmp_path, shots=1)
    assert (
        loader.asked == [("someone/sums", "easy", "test"), ("someone/sums", "easy", "train[:2]")] and said == "hf:someone/sums:easy:test@"
    )
    items = task.items(tmp_path, 1)
    assert items[1].prompt == "Question: 2+1?\nAnswer: so it is\n#### 3\n\nQuestion: 1+1?\nAnswer:" and len(items) == 2
    assert hub.fetch(catalog.task("gsm8k"), "hf:someone/sums::train", FIELDS, tmp_path)[0].items(tmp_path, 0)[0].prompt.startswith("Question: 2+1?")  # fmt: skip


def test_each_task_has_its_home(monkeypatch, tmp_path):
    """The home's configuration also stands where its data set is named; grouped tasks take the whole split for shots."""
    row = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "law"}
    loader = _use(monkeypatch, Loader({"auxiliary_train": [], "test": [row], "validation": [row], "dev": [row] * 5}))
    task, _ = hub.fetch(catalog.task("mmlu"), "hf", {}, tmp_path)
    assert loader.asked == [("cais/mmlu", "all", "test"), ("cais/mmlu", "all", "dev")] and len(task.items(tmp_path)) == 1
    hub.fetch(catalog.task("mmlu"), "hf:cais/mmlu::validation", {}, tmp_path, shots=0)
    assert loader.asked[2:] == [("cais/mmlu", "all", "validation")]
    open_book = {"question_stem": "Whales", "choices": {"text": ["fly", "sing"], "label": ["A", "B"]}, "answerKey": "B", "id": "7"}
    _use(monkeypatch, Loader({"test": [open_book]}))
    task, _ = hub.fetch(catalog.task("openbookqa"), "hf", {}, tmp_path)
    assert task.items(tmp_path)[0].pairs == (("Whales", " fly"), ("Whales", " sing"))
    assert set(hub.HOMES) <= set(catalog.names())
    with pytest.raises(ConfigError, match="cmath has no data set of its own"):
        hub.fetch(catalog.task("cmath"), "hf", {}, tmp_path)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub"), "openai/gsm8k .main. could not be fetched: no answer from the Hugging Face hub .*--data PATH"),
        (FileNotFoundError("Dataset 'openai/gsm8k' doesn't exist"), "is not on the hub, nor a folder here"),
        (ValueError("BuilderConfig 'mian' not found"), "cannot be read: BuilderConfig 'mian' not found"),
        (RuntimeError("Dataset scripts are no longer supported"), "cannot be read: Dataset scripts"),
    ],
)  # fmt: skip
def test_what_the_hub_does_not_give_is_told(monkeypatch, tmp_path, error, message):
    _use(monkeypatch, Loader(error))
    with pytest.raises(DataError, match=message):
        hub.fetch(catalog.task("gsm8k"), "hf", {}, tmp_path)


def test_wrong_names(monkeypatch, tmp_path):
    _use(monkeypatch, Loader({"test": SUMS}))
    with pytest.raises(DataError, match=r"has no field 'solution.value' \(for 'answer'\); it has problem, solution"):
        hub.fetch(catalog.task("gsm8k"), "hf:a/b", {"answer": "solution.value"}, tmp_path)
    with pytest.raises(ConfigError, match="must be hf:NAME"):
        hub.parse("hf:a:b:c:d")
    with pytest.raises(ConfigError, match="must be OURS=THEIRS"):
        hub.field_map("question:problem")
    assert hub.field_map("question=problem, answer=solution.text") == FIELDS and hub.is_hub("hf") and not hub.is_hub("hfdata/x")
    _use(monkeypatch, Loader({}, version="3.6.0"))
    with pytest.raises(ConfigError, match="4 or newer is needed"):
        hub.fetch(catalog.task("gsm8k"), "hf", {}, tmp_path)
    _use(monkeypatch, None)
    with pytest.raises(MissingExtraError, match="--data hf:NAME needs the package datasets"):
        hub.fetch(catalog.task("gsm8k"), "hf", {}, tmp_path)


def _folder(root: Path) -> Path:
    """A data set without a script: Parquet files in the hub's layout."""
    import pyarrow
    import pyarrow.parquet

    (root / "data").mkdir(parents=True)
    for split, rows in (("test", SUMS[:2]), ("train", SUMS[2:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "data" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.peer
def test_a_local_folder_of_parquet_files(monkeypatch, tmp_path):
    pytest.importorskip("datasets", reason="Hugging Face datasets come with the extra eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = _folder(tmp_path / "sums")
    task, said = hub.fetch(catalog.task("gsm8k"), f"hf:{folder}", FIELDS, tmp_path / "rows", shots=1)
    items = task.items(tmp_path / "rows", 1)
    assert [item.row["answer"] for item in items] == ["so it is\n#### 1", "so it is\n#### 2"]
    assert items[0].prompt.startswith("Question: 2+1?") and ":test@" in said
    with pytest.raises(DataError, match="cannot be read: Unknown split"):
        hub.fetch(catalog.task("gsm8k"), f"hf:{folder}::dev", FIELDS, tmp_path / "rows")
    with pytest.raises(DataError, match="is not on the hub, nor a folder here|could not be fetched"):
        hub.fetch(catalog.task("gsm8k"), "hf:nobody/nothing", FIELDS, tmp_path / "rows")


def test_a_field_that_the_task_needs_and_an_empty_split(monkeypatch, tmp_path):
    _use(monkeypatch, Loader({"test": SUMS}))
    with pytest.raises(DataError, match="has no field 'question', 'answer', which task gsm8k needs; it has problem, solution: .* --fields question=THEIRS,answer=THEIRS"):  # fmt: skip
        hub.fetch(catalog.task("gsm8k"), "hf:a/b", {}, tmp_path)
    _use(monkeypatch, Loader({"test": []}))
    with pytest.raises(DataError, match="split test of data set a/b has no rows"):
        hub.fetch(catalog.task("gsm8k"), "hf:a/b", FIELDS, tmp_path)


ROWS = '{"question": "1+1?", "answer": "#### 2"}\n'
WRONG = {
    "broken": ({"test.jsonl": '{"question": \n'}, "", "cannot be read: .*JSON parse error"),
    "mixed": ({"test-0.jsonl": ROWS, "test-1.jsonl": '{"other": 1}\n'}, "", "cannot be read: .*column names don't match"),
    "no parquet": ({"test.parquet": "this is text"}, "", "cannot be read: .*Parquet magic bytes not found"),
    "empty": ({"notes.unknown": ""}, "", "has no data files for `datasets` .Parquet, JSON, JSON lines, CSV."),
    "script": ({"set.py": "import datasets"}, "", "cannot be read: Dataset scripts are no longer supported"),
    "configuration": ({"test.jsonl": ROWS}, ":easy", "cannot be read: BuilderConfig 'easy' not found"),
    "split": ({"test.jsonl": ROWS}, "::dev", "cannot be read: Unknown split"),
    "field": ({"test.jsonl": '{"problem": "1+1?"}\n'}, "", "has no field 'question', 'answer', which task gsm8k needs; it has problem"),
}


@pytest.mark.peer
@pytest.mark.parametrize("name", WRONG)
def test_folders_that_datasets_cannot_read(monkeypatch, tmp_path, name):
    pytest.importorskip("datasets", reason="Hugging Face datasets come with the extra eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files, rest, message = WRONG[name]
    (tmp_path / "set").mkdir()
    for file, text in files.items():
        (tmp_path / "set" / file).write_text(text)
    with pytest.raises(DataError, match=message):
        hub.fetch(catalog.task("gsm8k"), f"hf:{tmp_path / 'set'}{rest}", {}, tmp_path / "rows", shots=0)


@pytest.mark.peer
@pytest.mark.parametrize(
    ("file", "text"), [("test.jsonl", ROWS), ("test.json", f"[{ROWS}]"), ("test.csv", "question,answer\n1+1?,#### 2\n")]
)
def test_local_folders_of_text_files(monkeypatch, tmp_path, file, text):
    pytest.importorskip("datasets", reason="Hugging Face datasets come with the extra eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / file).write_text(text)
    task, _ = hub.fetch(catalog.task("gsm8k"), f"hf:{tmp_path / 'set'}", {}, tmp_path / "rows", shots=0)
    assert [item.prompt for item in task.items(tmp_path / "rows", 0)] == ["Question: 1+1?\nAnswer:"]


def test_the_command_reads_a_data_set(monkeypatch, tmp_path, capsys):
    from rorqual.cli.main import main
    from tests.eval import small

    _use(monkeypatch, Loader({"test": SUMS[:2], "train": SUMS[2:]}))
    command = ["eval", str(small.export(tmp_path / "tiny")), "--tasks", "gsm8k", "--shots", "1", "--max-tokens", "4", "--out", str(tmp_path / "r.json")]  # fmt: skip
    fields = ["--fields", "question=problem,answer=solution.text"]
    assert main([*command, "--data", "hf:a/b", *fields]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["tasks"]["gsm8k"]["n"] == 2 and found["settings"]["data"] == {"gsm8k": "hf:a/b::test@"}
    assert main([*command[:3], "gsm8k,arc_easy", *command[4:], "--data", "hf:a/b"]) == 1
    assert "is one data set, and 2 tasks are named" in capsys.readouterr().err
    assert main([*command, "--data", str(tmp_path), *fields]) == 1
    assert "--fields is for" in capsys.readouterr().err
