"""The polyglot protocol on a small exercise: prompt, both formats, two attempts; the tools that are not here are named."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import DeviceError
from rorqual.eval import edits
from rorqual.eval.task import Tools
from rorqual.eval.tasks import exercises, polyglot
from tests.eval import boxes

ROW = {
    "task": "two-fer",
    "files": {
        "two_fer.py": "def two_fer(name):\n    pass\n",
        "two_fer_test.py": (
            "import unittest\nfrom two_fer import two_fer\n\nclass T(unittest.TestCase):\n"
            "    def test_a(self):\n        self.assertEqual(two_fer('A'), 'One for A')\n"
        ),
        ".docs/instructions.md": "# Instructions\n\nSay who gets one.\n",
        ".meta/config.json": json.dumps(
            {"files": {"solution": ["two_fer.py"], "test": ["two_fer_test.py"], "example": [".meta/example.py"]}}
        ),
        ".meta/example.py": "def two_fer(name):\n    return 'One for ' + name\n",
    },
}
_RIGHT = "two_fer.py\n```python\n<<<<<<< SEARCH\n    pass\n=======\n    return f'One for {name}'\n>>>>>>> REPLACE\n```\n"
_WRONG = _RIGHT.replace("One for", "Two for")


def _task(tmp_path, name="polyglot_python"):
    (tmp_path / "python.jsonl").write_text(json.dumps(ROW) + "\n")
    task = polyglot.task(name)
    return task, task.items(tmp_path)[0]


def _tools():
    boxes.best()
    return Tools()


def test_the_prompt_shows_what_may_be_edited_and_no_test(tmp_path):
    _, item = _task(tmp_path)
    assert (
        item.prompt.startswith("# Instructions\n\nSay who gets one.\n\nChange these files")
        and "two_fer.py\n```\ndef two_fer(name):\n    pass\n```" in item.prompt
    )
    assert "unittest" not in item.prompt and "SEARCH" in item.prompt and "example" not in item.prompt
    assert "SEARCH" not in _task(tmp_path, "polyglot_python_whole")[1].prompt


def test_two_attempts(tmp_path):
    task, item = _task(tmp_path)
    tools = _tools()
    first = task.judge(item.row, _WRONG, tools)
    assert first.score == 0 and "'Two for A' != 'One for A'" in first.note and first.parts == {"well_formed": 1.0}
    second = task.again(item.row, item.prompt, _WRONG, first)
    assert second.prompt.startswith(item.prompt + _WRONG) and "'Two for A' != 'One for A'" in second.prompt
    answer = "two_fer.py\n<<<<<<< SEARCH\n    return f'Two for {name}'\n=======\n    return f'One for {name}'\n>>>>>>> REPLACE\n"
    assert task.judge(item.row, answer, tools).score == 1


@pytest.mark.parametrize(
    ("answer", "score", "read"),
    [
        (_RIGHT, 1, True),
        ("two_fer_test.py\n<<<<<<< SEARCH\nimport unittest\n=======\nimport os; os._exit(0)\n>>>>>>> REPLACE\n", 0, False),
        ("I would write a function.", 0, False),
        (_RIGHT.replace("return f'One for {name}'", "import os; os._exit(0)"), 0, True),
        (_RIGHT.replace("    pass", "    passed"), 0, False),
    ],
)
def test_answers(tmp_path, answer, score, read):
    task, item = _task(tmp_path)
    found = task.judge(item.row, answer, _tools())
    assert (found.score, found.answer is not None, found.parts["well_formed"]) == (score, read, float(read))


def test_whole_files(tmp_path):
    task, item = _task(tmp_path, "polyglot_python_whole")
    assert task.judge(item.row, "two_fer.py\n```\n" + ROW["files"][".meta/example.py"] + "```\n", _tools()).score == 1
    assert edits.apply("", {"a": ""}, "whole").problem == "there is no edit"


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(exercises, "missing", lambda language: "go")
    with pytest.raises(DeviceError, match="tests of go exercises need go; install it, or leave polyglot_go out"):
        exercises.run(boxes.best(), "go", {}, {}, [], {})


@pytest.mark.slow
@pytest.mark.parametrize("language", ["rust", "java", "go"])
def test_compiled_languages(language, monkeypatch):
    if language == "java":
        monkeypatch.setattr(exercises, "_JARS", exercises._JARS[:-1])  # this exercise needs no AssertJ
    if exercises.missing(language):
        pytest.skip(f"tests of {language} exercises need {exercises.missing(language)}")
    files, tests = {
        "rust": (
            {"Cargo.toml": '[package]\nedition = "2021"\nname = "inc"\nversion = "0.0.0"\n', "src/lib.rs": "pub fn inc(n: i32) -> i32 { n + 1 }\n"},
            {"tests/inc.rs": "use inc::inc;\n#[test]\nfn a() { assert_eq!(inc(1), 2); }\n#[test]\n#[ignore]\nfn b() { assert_eq!(inc(2), 3); }\n"},
        ),
        "java": (
            {"src/main/java/Inc.java": "class Inc { static int inc(int n) { return n + 1; } }"},
            {"src/test/java/IncTest.java": "import org.junit.jupiter.api.*;\nclass IncTest { @Disabled(\"x\")\n @Test void a() { Assertions.assertEquals(2, Inc.inc(1)); } }"},
        ),
        "go": (
            {"go.mod": "module inc\n\ngo 1.18\n", "inc.go": "package inc\n\nfunc Inc(n int) int { return n + 1 }\n"},
            {"inc_test.go": 'package inc\n\nimport "testing"\n\nfunc TestA(t *testing.T) { if Inc(1) != 2 { t.Fatal("x") } }\n'},
        ),
    }[language]  # fmt: skip
    box = boxes.best()
    assert exercises.run(box, language, files, tests, [], {}).right
    wrong = {name: text.replace("n + 1", "n + 2") for name, text in files.items()}
    assert not exercises.run(box, language, wrong, tests, [], {}).right
    gone = {"rust": "{ std::process::exit(0) }", "java": "{ System.exit(0); return 0; }", "go": "{ os.Exit(0); return 0 }"}[language]
    ended = {
        name: text.replace("{ n + 1 }", gone).replace("{ return n + 1; }", gone).replace("{ return n + 1 }", gone)
        for name, text in files.items()
    }
    assert not exercises.run(box, language, ended, tests, [], {}).right
