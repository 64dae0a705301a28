"""`rorqual data build`: from the command line to a folder, what it prints, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import rorqual.data.build
from rorqual.cli.main import main
from rorqual.data.config import BuildConfig
from tests.data.corpora import awkward_lines, documents, train_documents, write_jsonl


def test_a_build_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, web = write_jsonl(tmp_path / "a.jsonl", documents(30)), tmp_path / "b.jsonl"
    web.write_bytes(b"".join(awkward_lines(280)[0]))
    out = tmp_path / "out"
    argv = ["data", "build", f"code={code}", f"web={web}", "--out", str(out), "--vocab-size", "300", "--workers", "1"]
    assert main([*argv, "--validation-rate", "0", "--split-rate", "0"]) == 0
    index = json.loads((out / "index.json").read_text())
    assert train_documents(out, "code") == documents(30)
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split() == ["source", "documents", "tokens", "bytes", "held", "out", "duplicates", "near"]
    entry = index["sources"]["code"]["train"]
    assert lines[1].split() == ["code", "30", f"{entry['tokens']:,}", f"{entry['bytes']:,}", "0", "0", "0"]
    assert lines[2].split()[:2] == ["web", "4"]
    assert lines[3].startswith("rejected: 1 blank_line, 1 empty_text, 1 extra_data,") and f"{out}/rejected.jsonl" in lines[3]
    assert lines[4] == f"{out}: 300 ids as uint16, fingerprint {index['fingerprint'][:16]}"
    assert [line.split()[0] for line in printed.err.splitlines()][-4:] == ["duplicates", "tokenizer", "encode", "merge"]
    assert main(argv) == 1
    assert "out exists; a data folder is never overwritten" in capsys.readouterr().err


def _captured(monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> tuple[BuildConfig, dict[str, Any]]:
    """The configuration that a command line stands for; nothing is built."""
    calls: list[tuple[BuildConfig, dict[str, Any]]] = []
    index = {
        "sources": {},
        "rejected": {},
        "default_corpus": {"interpreter": "CPython"},
        "vocab_size": 1,
        "dtype": "uint16",
        "fingerprint": "f",
    }

    def build(config: BuildConfig, out: str, **more: Any) -> dict[str, Any]:
        calls.append((config, {"out": out, "workers": more["workers"]}))
        return index

    monkeypatch.setattr(rorqual.data.build, "build", build)
    assert main(["data", "build", "--out", "o", *argv]) == 0
    return calls[0]


def test_defaults_are_the_configuration_s(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _captured(monkeypatch, []) == (BuildConfig(), {"out": "o", "workers": None})
    assert 'default corpus: {"interpreter": "CPython"}' in capsys.readouterr().out


def test_every_field_has_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"vocab_size": 999, "tokenizer_bytes": 7, "text_field": "body", "validation_rate": 0.25, "validation_bytes": 8, "near_duplicate": 0.75,
              "split_rate": 0.3, "arithmetic_documents": 9, "seed": 3, "shard_bytes": 10, "strict": True, "inputs": ("a", "n=b")}  # fmt: skip
    argv = [
        part for name, value in values.items() if name not in ("strict", "inputs") for part in (f"--{name.replace('_', '-')}", str(value))
    ]
    assert _captured(monkeypatch, ["a", "n=b", *argv, "--strict", "--workers", "3"]) == (BuildConfig(**values), {"out": "o", "workers": 3})  # type: ignore[arg-type]
    assert _captured(monkeypatch, ["--tokenizer", "t"])[0] == BuildConfig(tokenizer="t")
    assert {*values, "tokenizer"} == {field.name for field in fields(BuildConfig)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "verb"),
        (["build"], "--out"),
        (["build", "--out", "x", "--workers", "0"], "--workers (0) must be 1 or larger"),
        (["build", "--out", "x", "--tokenizer", "t", "--vocab-size", "5"], "not allowed with argument"),
        (["build", "--out", "x", "--split-rate", "much"], "invalid float value"),
        (["build", "--out", "x", "--no-such"], "unrecognized arguments"),
    ],
)
def test_wrong_usage(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", *argv])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.jsonl"], "gone.jsonl does not exist"),
        (["--validation-rate", "1"], "validation_rate (1.0) must be a share in [0, 1)"),
        (["--seed", "-1"], "seed (-1) must be 0 or larger"),
        (["--vocab-size", "20"], "vocab_size (20) must be 276 or more"),
        (["--tokenizer", "nowhere"], "cannot read the tokenizer nowhere"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", "--out", "x", *argv]) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.startswith("rorqual: ") and printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["data", "build", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "A build that was interrupted continues" in printed and "(default: 0.02)" in printed
