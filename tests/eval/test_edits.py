"""Aider's two edit formats: what is applied, and what is not well formed."""

from __future__ import annotations

import pytest

from rorqual.eval.edits import apply

FILES = {"src/lib.rs": "fn one() {\n    todo!()\n}\n\nfn two() {}\n", "notes.md": "a\n"}


def _diff(search: str, new: str, name: str = "src/lib.rs") -> str:
    return f"I change it.\n\n{name}\n```rust\n<<<<<<< SEARCH\n{search}=======\n{new}>>>>>>> REPLACE\n```\n"


def test_a_diff_replaces_the_searched_lines():
    found = apply(_diff("    todo!()\n", "    1\n"), FILES, "diff")
    assert found.well_formed and found.files["src/lib.rs"] == "fn one() {\n    1\n}\n\nfn two() {}\n" and found.files["notes.md"] == "a\n"


def test_several_blocks_bare_names_and_empty_searches():
    answer = _diff("fn one() {  \n    todo!()\n}\n", "", "**lib.rs**") + _diff("", "fn three() {}\n", "src/lib.rs")
    assert apply(answer, FILES, "diff").files["src/lib.rs"] == "\nfn two() {}\nfn three() {}\n"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("I would rather not.", "there is no edit"),
        (_diff("    nothing like it\n", "x\n"), "not in src/lib.rs"),
        (_diff("    todo!()\n", "1\n", "src/other.rs"), "names no file"),
        ("src/lib.rs\n<<<<<<< SEARCH\nfn two() {}\n", "no ======= or no REPLACE"),
        ("src/lib.rs\n>>>>>>> REPLACE\n", "without its SEARCH"),
    ],
)
def test_answers_that_are_not_well_formed(answer, problem):
    found = apply(answer, FILES, "diff")
    assert problem in found.problem and found.files == FILES


def test_whole_files():
    found = apply("Here:\n\nsrc/lib.rs\n```rust\nfn one() {}\n```\n\n`notes.md`:\n```\nb\n```\n", FILES, "whole")
    assert found.well_formed and found.files == {"src/lib.rs": "fn one() {}\n", "notes.md": "b\n"}


def test_one_file_needs_no_name():
    assert apply("```python\nx = 1\n```", {"a.py": ""}, "whole").files == {"a.py": "x = 1\n"}


@pytest.mark.parametrize(("answer", "problem"), [("src/lib.rs\n```rust\nfn", "not closed"), ("tests/lib.rs.py\n```\nx\n```", "not one of the files"), ("", "no edit")])  # fmt: skip
def test_whole_answers_that_are_not_well_formed(answer, problem):
    assert problem in apply(answer, FILES, "whole").problem
