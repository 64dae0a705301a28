"""`rorqual eval`: a folder and a server on small files, killed and resumed, compared; what is wrong is said in one message."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rorqual.cli.main import main
from rorqual.eval import run as eval_run
from rorqual.inference.client import Client
from tests.eval import small

ROOT = Path(__file__).parents[2]
ARC = [{"query": f"Question: which whale sings {n} times?", "choices": ["blue", "grey", "the pink one"], "gold": n % 3} for n in range(6)]
LAMBADA = [{"text": f"the blue whale sings {n} times a day and the blue whale sings"} for n in range(5)]
GSM8K = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(4)]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.export(tmp_path_factory.mktemp("eval") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write(root, "arc_easy.jsonl", ARC)
    write(root, "lambada.jsonl", LAMBADA)
    return write(root, "gsm8k.jsonl", GSM8K)


def _command(target: Any, data: Path, out: Path, tasks: str = "lambada,arc_easy,gsm8k", *more: str) -> list[str]:
    return ["eval", str(target), "--tasks", tasks, "--data", str(data), "--shots", "1", "--max-tokens", "4", "--out", str(out), *more]


def _read(out: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(out.read_text())
    return value


def test_a_run_its_file_and_its_table(folder, data, tmp_path, capsys):
    out = tmp_path / "a.json"
    assert main(_command(folder, data, out)) == 0
    shown, said = capsys.readouterr()
    rows = [line.split() for line in shown.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["lambada", "acc", "1"], ["lambada", "perplexity", "1"], ["arc_easy", "acc", "1"], ["arc_easy", "acc_norm", "1"], ["gsm8k", "exact_match", "1"], ["gsm8k", "flexible", "1"]]  # fmt: skip
    assert [row[5] for row in rows] == ["5", "5", "6", "6", "4", "4"] and str(out) in said and "arc_easy" in said
    found = _read(out)
    assert found["model"]["name"] == "tiny" and len(found["model"]["tokenizer_sha256"]) == 64 and found["settings"]["seed"] == 0
    part = found["tasks"]["gsm8k"]
    assert part["version"] == 1 and len(part["template_sha256"]) == 64 and part["truncated_rate"] == 1.0 and part["unparseable_rate"] == 1.0
    assert [item["id"] for item in part["items"]] == ["0", "1", "2", "3"] and part["first_prompt"].startswith("Question: What is 1 + 1?")
    assert not list(tmp_path.glob("*.partial"))
    assert main(_command(folder, data, out)) == 1
    assert "a.json is there already" in capsys.readouterr().err


def test_comparison_of_two_runs(folder, data, tmp_path, capsys):
    for name, weights in (("a", "fp32"), ("b", "bf16")):
        assert main(_command(folder, data, tmp_path / f"{name}.json", "lambada,arc_easy", "--weights", weights)) == 0
    capsys.readouterr()
    assert main(["eval", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:6] == ["task", "metric", "first", "second", "difference", "stderr"] and [row[0] for row in rows[3:]] == [
        "lambada",
        "arc_easy",
        "arc_easy",
    ]
    assert main(_command(folder, data, tmp_path / "c.json", "lambada", "--limit", "2")) == 0
    assert main(["eval", "--compare", str(tmp_path / "a.json"), str(tmp_path / "c.json")]) == 0
    assert main(["eval", "--compare", str(tmp_path / "a.json"), str(data / "lambada.jsonl")]) == 1
    assert "no result of rorqual eval" in capsys.readouterr().err


def test_published_figures_stand_alone_and_beside_ours(folder, data, tmp_path, capsys):
    assert main(["eval", "--published"]) == 0
    assert "DeepSeek-V3-Base" in capsys.readouterr().out
    assert main(["eval", "--published", "--data", str(data)]) == 0
    rows = {line.partition(" (")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["GSM8K"].endswith(" gsm8k") and rows["HellaSwag"].endswith("hellaswag: data to be supplied")
    assert main(["eval", "--list"]) == 0
    assert ["arc_easy", "choices", "25"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert main(_command(folder, data, tmp_path / "p.json", "arc_easy", "--published")) == 0
    (line,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("ARC-Easy")]
    assert line[-1] == "98.9" and line[2] == "25"


def test_an_interrupted_run_goes_on_and_gives_the_same_numbers(folder, data, tmp_path, capsys, monkeypatch):
    assert main(_command(folder, data, tmp_path / "whole.json", "lambada,gsm8k", "--batch", "2")) == 0
    calls = {"n": 0}
    real = eval_run._scored_record

    def stops(*args: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return real(*args)

    command = _command(folder, data, tmp_path / "r.json", "lambada,gsm8k", "--batch", "2")
    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "_scored_record", stops)
        assert main(command) == 130
    kept = (tmp_path / "r.json.partial").read_text().splitlines()
    assert len(kept) == 3 and not (tmp_path / "r.json").exists()
    assert main([*command, "--seed", "3"]) == 1
    assert "holds a run that differs in settings" in capsys.readouterr().err
    assert main(command) == 0
    first, second = _read(tmp_path / "whole.json"), _read(tmp_path / "r.json")
    assert first["tasks"] == second["tasks"] and second["computed"]["scored"] < first["computed"]["scored"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_goes_on_at_the_next_item(folder, tmp_path):
    data = write(tmp_path / "data", "gsm8k.jsonl", [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(300)])
    command = _command(folder, data, tmp_path / "k.json", "gsm8k", "--max-tokens", "64")
    process = subprocess.Popen([sys.executable, "-m", "rorqual", *command], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    partial = tmp_path / "k.json.partial"
    while not partial.exists() or len(partial.read_text().splitlines()) < 20:
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = partial.read_text().splitlines()
    assert 20 <= len(kept) < 301
    assert main(command) == 0
    assert [item["id"] for item in _read(tmp_path / "k.json")["tasks"]["gsm8k"]["items"]] == [str(n) for n in range(300)]
    assert main(_command(folder, data, tmp_path / "w.json", "gsm8k", "--max-tokens", "64")) == 0
    assert _read(tmp_path / "k.json")["tasks"] == _read(tmp_path / "w.json")["tasks"]


# ---------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question": "a", "answer": "#### 1"}, {"question": "b"}], r"gsm8k.jsonl, row 2: field 'answer' is missing"),
        ([{"question": "a", "answer": "1"}], "row 1 has not the form of task gsm8k"),
        ([{"question": "\ud800", "answer": "#### 1"}], "lone surrogates"),
        ([], "has no rows"),
    ],
)  # fmt: skip
def test_broken_rows_are_named(tmp_path, capsys, rows, message):
    assert main(["eval", "nowhere", "--tasks", "gsm8k", "--data", str(write(tmp_path / "d", "gsm8k.jsonl", rows))]) == 1
    assert message in capsys.readouterr().err


def test_a_duplicate_id_and_invalid_bytes_are_named(tmp_path, capsys):
    rows = [{"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "canonical_solution": "    pass\n", "test": "def check(f):\n    pass\n"}] * 2  # fmt: skip
    assert main(["eval", "nowhere", "--tasks", "humaneval", "--data", str(write(tmp_path / "d", "HumanEval.jsonl", rows)), "--out", str(tmp_path / "x")]) == 1  # fmt: skip
    said = capsys.readouterr().err
    assert "row 2: id 'HumanEval/0' is row 1's already" in said or "humaneval needs" in said
    (tmp_path / "d" / "lambada.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')
    assert main(["eval", "nowhere", "--tasks", "lambada", "--data", str(tmp_path / "d")]) == 1
    assert "is not UTF-8 (byte 10)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x", "--tasks", "gsm9k", "--data", "."], "did you mean gsm8k"),
        (["x", "--tasks", "gsm8k"], "--data (None)"),
        (["x", "--tasks", "gsm8k", "--data", "."], "task gsm8k needs gsm8k/test.jsonl"),
        (["x", "--tasks", "gsm8k", "--data", ".", "--repeats", "2"], "--temperature 0 makes them equal"),
        (["ftp://x", "--tasks", "lambada", "--data", "DATA"], "is not a folder"),
        (["nowhere", "--tasks", "lambada", "--data", "DATA"], "nowhere is not a folder"),
    ],
)  # fmt: skip
def test_wrong_words_are_told_before_any_work(data, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *(str(data) if word == "DATA" else word for word in words)]) == 1
    assert message in capsys.readouterr().err


def test_usage_errors():
    for words in ([], ["x"], ["x", "--tasks", "a", "--limit", "0"], ["x", "--harness", "other"]):
        with pytest.raises(SystemExit):
            main(["eval", *words])


def test_a_long_letter_and_empty_texts_are_scored(folder, tmp_path, capsys):
    rows = [{"text": "a" * 8192}, {"text": ""}, {"text": "\U0001f40b" * 10}]
    assert main(["eval", str(folder), "--tasks", "bpb", "--data", str(write(tmp_path / "d", "t.jsonl", rows) / "t.jsonl"), "--out", str(tmp_path / "o.json")]) == 0  # fmt: skip
    part = _read(tmp_path / "o.json")["tasks"]["bpb"]
    assert [item["bytes"] for item in part["items"]] == [8192, 0, 40] and part["metrics"]["bits_per_byte"]["value"] > 0


def test_an_answer_that_is_one_letter_again_and_again(folder, tmp_path, monkeypatch):
    """8,192 bytes of one letter as passage and as answer: cut, counted, judged."""
    data = write(tmp_path / "d", "gsm8k.jsonl", [{"question": "a" * 8192, "answer": "#### 1"}] * 2)
    assert main(_command(folder, data, tmp_path / "o.json", "gsm8k")) == 0
    part = _read(tmp_path / "o.json")["tasks"]["gsm8k"]
    assert part["truncated_rate"] == 1.0 and part["failed"] == 0


# ---------------------------------------------------------------------- servers


class House:
    """A server whose answers `answer` gives: (status, body) for (path, request's body), or None for silence."""

    def __init__(self, answer: Callable[[str, dict[str, Any]], Any]) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply((200, {"data": [{"id": "m"}]}))

            def do_POST(self) -> None:
                self.reply(answer(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def reply(self, found: Any) -> None:
                if found is None:
                    self.close_connection = True
                    return
                raw = found[1] if isinstance(found[1], bytes) else json.dumps(found[1]).encode()
                self.send_response(found[0])
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    monkeypatch.setattr("rorqual.inference.client.Client", functools.partial(Client, sleep=lambda seconds: None))
    houses: list[House] = []

    def build(answer: Any) -> House:
        houses.append(House(answer))
        return houses[-1]

    yield build
    for one in houses:
        one.http.shutdown()
        one.http.server_close()


def _says(text: str, reason: str = "stop") -> tuple[int, dict[str, Any]]:
    return 200, {"choices": [{"text": text, "finish_reason": reason}], "usage": {"completion_tokens": 3}}


def test_a_server_answers_and_one_request_fails(house, data, tmp_path, capsys):
    """Three of four get an answer, two of them right: 2/3, never 2/4; the same command asks again for the fourth alone."""
    asked: list[str] = []

    def answer(path: str, body: dict[str, Any]) -> Any:
        asked.append(body["prompt"])
        place = int(body["prompt"].rpartition("What is ")[2].partition(" ")[0])
        if place == 3 and len(asked) < 12:
            return 500, b"boom"
        return _says(f" It is.\n#### {place + 1 if place < 2 else 7}")

    url = house(answer).url
    assert main(_command(url, data, tmp_path / "s.json", "gsm8k")) == 1
    shown, said = capsys.readouterr()
    assert "0.6667" in shown and "3/4" in shown
    assert "gsm8k: 1 of 4 items got no answer" in said and "answered 500 (boom)" in said and "Traceback" not in said
    part = _read(tmp_path / "s.json")["tasks"]["gsm8k"]
    assert part["failed"] == 1 and part["metrics"]["exact_match"]["n"] == 3 and "scores" not in part["items"][3]
    asked += [""] * 12
    before = len(asked)
    assert main(_command(url, data, tmp_path / "s.json", "gsm8k")) == 0
    assert len(asked) == before + 1 and _read(tmp_path / "s.json")["tasks"]["gsm8k"]["metrics"]["exact_match"]["value"] == 0.5
    assert not (tmp_path / "s.json.partial").exists()


@pytest.mark.parametrize("nothing", [None, (200, b""), (200, b"\xff\xfe{"), (500, b""), (200, {"choices": []}), (200, {"choices": [{}]})])
def test_a_server_that_gives_nothing_is_no_zero(house, data, tmp_path, capsys, nothing):
    assert main(_command(house(lambda path, body: nothing).url, data, tmp_path / "n.json", "gsm8k")) == 1
    shown, said = capsys.readouterr()
    assert "4 of 4 items got no answer" in said and "Traceback" not in said
    row = shown.splitlines()[2].split()
    assert row[:6] == ["gsm8k", "-", "1", "-", "-", "0/4"] and _read(tmp_path / "n.json")["tasks"]["gsm8k"]["metrics"] == {}


@pytest.mark.parametrize("text", ["", "\ufffd\x00\ufffd", "a" * 8192])
def test_odd_answers_of_a_server_are_wrong_ones(house, data, tmp_path, text):
    assert main(_command(house(lambda path, body: _says(text)).url, data, tmp_path / "o.json", "gsm8k")) == 0
    part = _read(tmp_path / "o.json")["tasks"]["gsm8k"]
    assert part["metrics"]["exact_match"]["value"] == 0.0 and part["unparseable_rate"] == 1.0 and part["failed"] == 0
    assert [item["outputs"] for item in part["items"]] == [[text]] * 4


def test_likelihood_tasks_are_refused_by_name_where_nothing_is_echoed(house, data, tmp_path, capsys):
    url = house(lambda path, body: _says("x")).url
    assert main(_command(url, data, tmp_path / "o.json", "gsm8k,lambada,arc_easy")) == 1
    said = capsys.readouterr().err
    assert (
        f"lambada, arc_easy need the log-probabilities of given text (echo with logprobs at /v1/completions), which {url} does not give"
        in said
    )
    assert not list(tmp_path.glob("o.json*"))


def test_nobody_at_the_address(house, data, tmp_path, capsys):
    assert main(_command("http://127.0.0.1:9/v1", data, tmp_path / "o.json", "gsm8k", "--timeout", "1")) == 1
    assert "gave no answer" in capsys.readouterr().err


def test_a_model_that_only_ends(folder, data, tmp_path, capsys, monkeypatch):
    """Every token ends the answer: empty texts, unparseable, right nowhere, and the run goes through."""
    monkeypatch.setattr("rorqual.inference.prompts.end_ids", lambda *_: tuple(range(small.tokenizer().vocab_size)))
    assert main(_command(folder, data, tmp_path / "e.json", "gsm8k")) == 0
    part = _read(tmp_path / "e.json")["tasks"]["gsm8k"]
    assert [item["outputs"] for item in part["items"]] == [[""]] * 4 and part["unparseable_rate"] == 1.0 and part["truncated_rate"] == 0.0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_our_own_server_gives_the_local_run(folder, data, tmp_path, capsys):
    pytest.importorskip("uvicorn", reason="the server needs the extra serve")
    from tests.server.real import running

    assert main(_command(folder, data, tmp_path / "local.json")) == 0
    with running(folder) as server:
        assert main(_command(f"http://127.0.0.1:{server.port}/v1", data, tmp_path / "remote.json")) == 0
    local, remote = _read(tmp_path / "local.json")["tasks"], _read(tmp_path / "remote.json")["tasks"]
    for name, part in local.items():
        other = remote[name]
        assert part["prompts_sha256"] == other["prompts_sha256"] and other["failed"] == 0
        for mine, theirs in zip(part["items"], other["items"], strict=True):
            assert mine["scores"] == theirs["scores"] and mine.get("outputs") == theirs.get("outputs")
            assert mine.get("logprobs") == (None if "logprobs" not in theirs else pytest.approx(theirs["logprobs"], abs=1e-3))
    assert main(["eval", "--compare", str(tmp_path / "local.json"), str(tmp_path / "remote.json")]) == 0
    assert all(line.split()[-1] == "=" for line in capsys.readouterr().out.splitlines()[-5:])
