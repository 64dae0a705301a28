"""The command `rorqual`: help, unknown verbs, and what errors look like from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rorqual.cli import main as cli
from rorqual.errors import CheckpointError


def _verb(monkeypatch: pytest.MonkeyPatch, function) -> list[str]:  # type: ignore[no-untyped-def]
    """Puts `function` in the place of the verb `inspect`; returns the list of modules that main imports."""
    imported: list[str] = []

    def import_module(name: str) -> SimpleNamespace:
        imported.append(name)
        return SimpleNamespace(main=function)

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    return imported


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_with_one_line_in_its_group(argv, capsys):
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    for group, verbs in cli.VERBS.items():
        block = out.split(f"{group}:\n")[1].split("\n\n")[0].splitlines()
        assert [line.split("  ")[1] for line in block] == list(verbs)
        assert all(len(line.split(None, len(verb.split()))[-1]) > 10 for line, verb in zip(block, verbs, strict=True))
    assert max(map(len, out.splitlines())) <= 140


def test_every_verb_of_the_design_is_there():
    verbs = {verb for group in cli.VERBS.values() for verb in group}
    foundation = {"data build", "doctor", "export", "generate", "inspect", "pretrain", "run", "tokenizer train"}
    assert foundation | {"plan", "simulate", "serve", "chat"} <= verbs


def test_version_is_the_projects(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rorqual ")


@pytest.mark.parametrize(
    ("given", "meant"), [("pretrian", "pretrain"), ("gen", "generate"), ("tokeniser", "tokenizer"), ("exprot", "export")]
)
def test_unknown_verb_suggests_the_nearest(given, meant, capsys):
    assert cli.main([given]) == 2
    assert capsys.readouterr().err == f"rorqual: '{given}' is no verb; did you mean `rorqual {meant}`?\n"


def test_verb_like_no_other_lists_all(capsys):
    assert cli.main(["zzz"]) == 2
    words = sorted({verb.split()[0] for group in cli.VERBS.values() for verb in group})
    assert f"there are {', '.join(words)}" in capsys.readouterr().err


def test_only_the_verbs_module_is_imported_and_gets_the_rest_of_the_line(monkeypatch):
    seen = []
    imported = _verb(monkeypatch, lambda argv: seen.append(argv) or 7)
    assert cli.main(["inspect", "folder", "--json"]) == 7
    assert imported == ["rorqual.cli.inspect"]
    assert seen == [["folder", "--json"]]


def test_an_error_of_ours_is_one_message_and_exit_code_1(monkeypatch, capsys):
    def fail(argv: list[str]) -> int:
        raise CheckpointError("folder has no config.json; give a model folder")

    _verb(monkeypatch, fail)
    assert cli.main(["inspect"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "rorqual: folder has no config.json; give a model folder\n")


def test_a_bug_keeps_its_traceback(monkeypatch):
    def fail(argv: list[str]) -> int:
        raise KeyError("bug")

    _verb(monkeypatch, fail)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["inspect"])


def test_ctrl_c_is_quiet_and_130(monkeypatch, capsys):
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    _verb(monkeypatch, interrupt)
    assert cli.main(["inspect"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_left_is_no_traceback():
    code = "import sys; from rorqual.cli import main as cli\ndef many(argv):\n    for _ in range(10**5): print('x' * 100)\n"
    code += "cli.importlib.import_module = lambda name: __import__('types').SimpleNamespace(main=many)\nsys.exit(cli.main(['inspect']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_module_and_command_are_the_same():
    done = subprocess.run([sys.executable, "-m", "rorqual", "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "'nonsense' is no verb" in done.stderr
