"""The verb `distill`: a folder as teacher, a server as teacher, mistakes told in one message."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rorqual.cli.main import main
from rorqual.posttrain import generate
from tests.posttrain import teachers
from tests.posttrain.tiny_chat import write_model


@pytest.fixture
def problems(tmp_path):
    rows = [{"id": f"{a}", "prompt": f"What is {a} + 1?", "answer": a + 1, "solution": f"{a + 1}"} for a in range(4)]
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]), encoding="utf-8")
    return file


def _reply(body):  # type: ignore[no-untyped-def]
    number = int(body["messages"][-1]["content"].split()[2])
    return 200, teachers.message(f"It is \\boxed{{{number + (body['seed'] % 2)}}}.", reasoning_content=f"one more than {number}")


def test_a_server_teaches(tmp_path, problems, capsys):
    with teachers.server(_reply) as url:
        argv = ["distill", "--teacher", url, "--problems", str(problems), "--samples", "3", "--limit", "3", "--out", str(tmp_path / "out")]
        assert main(argv) == 0
        assert main(argv) == 1
    said = capsys.readouterr()
    assert "of 3 problems have a reasoned answer that was kept" in said.out and "original: 3 kept" in said.out
    assert "left out 1: the same id or question again" in said.err and "holds a finished distillation" in said.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["teacher"] == {"kind": "server", "url": url, "model": "whale"} and manifest["problems_file"] == str(problems)
    assert sum(manifest["counts"]["drafts"]["reasoned"].values()) == 9


def test_a_teacher_that_goes_away_is_told_and_the_call_goes_on(tmp_path, problems, capsys, monkeypatch):
    monkeypatch.setattr(generate, "Client", lambda url, api_key=None: _Hasty(url, api_key=api_key))
    seen: list[dict[str, Any]] = []
    alive: list[bool] = []

    def dying(body):  # type: ignore[no-untyped-def]
        seen.append(body)
        return _reply(body) if len(seen) <= 2 or alive else (503, {"error": {"message": "over"}})

    argv = ["distill", "--problems", str(problems), "--samples", "1", "--parallel", "1", "--out", str(tmp_path / "out"), "--teacher"]
    with teachers.server(dying) as url:
        assert main([*argv, url]) == 1
        assert "answers to 2 of 4 problems are in" in capsys.readouterr().err
        assert (tmp_path / "out" / "answers.jsonl.partial").exists() and not (tmp_path / "out" / "sft.jsonl").exists()
        alive.append(True)
        assert main([*argv, url]) == 0
    assert [body["messages"][-1]["content"][8:9] for body in seen] == ["0", "1", "2", "2", "3"]


class _Hasty(generate.Client):
    """Gives up at once."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        super().__init__(url, api_key=api_key, retries=0)


def test_a_folder_teaches(tmp_path, problems, capsys):
    folder = write_model(tmp_path / "teacher")
    argv = ["distill", "--teacher", str(folder), "--problems", str(problems), "--samples", "2", "--max-tokens", "4", "--temperature", "1"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert "0 of 4 problems" in capsys.readouterr().out and (tmp_path / "out" / "sft.jsonl").read_text(encoding="utf-8").count("\n") == 4


def test_experts_by_domain(tmp_path, problems, capsys):
    with teachers.server(_reply) as url:
        argv = ["distill", "--problems", str(problems), "--samples", "2", "--out", str(tmp_path / "out"), "--teacher", f"code={tmp_path}"]
        assert main(argv) == 1
        assert "no teacher for the domain math" in capsys.readouterr().err
        assert main([*argv, "--teacher", f"math={url}"]) == 0  # nobody needs the other one
    assert main(["distill", "--problems", str(problems), "--out", str(tmp_path / "x"), "--teacher", "a", "--teacher", "b"]) == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["teacher"]["teachers"]["math"]["url"] == url
    assert "one at most without a domain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give the problems"),
        (["--problems", "nothing.jsonl"], "cannot read nothing.jsonl"),
        (["--tasks", "nothing"], "nothing"),
        (["--problems", "{problems}", "--temperature", "0"], "temperature 0 makes them equal"),
        (["--problems", "{problems}", "--against", "nowhere"], "neither a file nor a folder"),
        (["--problems", "{problems}"], "teacher"),
        (["--problems", "{problems}", "--language", "xx"], "must be one of"),
    ],
)
def test_mistakes_are_one_message(tmp_path, problems, capsys, more, message):
    argv = [
        "distill",
        "--teacher",
        str(tmp_path / "teacher"),
        "--out",
        str(tmp_path / "out"),
        *(one.format(problems=problems) for one in more),
    ]
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
