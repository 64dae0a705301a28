"""Aider's polyglot protocol: Exercism exercises in six languages, two attempts, the second with the output of the tests. No torch.

An answer edits the given files in one of two formats (rorqual/eval/edits.py): `polyglot_LANGUAGE` takes `diff`, as the report's table 6 does,
`polyglot_LANGUAGE_whole` takes whole files. The score of a task is that of the last attempt; "tries" in the records has both, `well_formed` is
the share of answers whose edits could all be applied. An exercise's other files (the answer's own tests among them) are never written.
"""

from __future__ import annotations

from pathlib import Path

from rorqual.eval import edits
from rorqual.eval.data import Row, read_rows
from rorqual.eval.task import Attempt, GenerationTask, Judgement, Tools
from rorqual.eval.tasks import exercises

_FORMS = {
    "diff": (
        "Answer with edits. For each one write the file's name on a line of its own, then a fenced block with\n"
        "<<<<<<< SEARCH\nlines of the file as they are now\n=======\nlines that replace them\n>>>>>>> REPLACE\n"
    ),
    "whole": "For each file that you change write its name on a line of its own, then a fenced block with all of its new content.\n",
}


def task(name: str) -> GenerationTask:
    """`polyglot_python`, `polyglot_cpp`, ..., and each with `_whole` behind it."""
    form = "whole" if name.endswith("_whole") else "diff"
    language = name.removeprefix("polyglot_").removesuffix("_whole")
    return GenerationTask(
        name=name, version=1, files=(f"aider_polyglot/{language}.jsonl", f"{language}.jsonl"),
        form="JSON lines with 'task' and 'files' (name to text, with .meta/config.json and .docs/ as Exercism has them)", fields=("task", "files"), shots=0,
        read=_read, row_id="task", question=lambda row: _question(row, form), answer=lambda row: "", metric="pass@2", max_tokens=4096,
        judge=lambda row, text, tools: judge(row, text, tools, language, form), again=lambda row, prompt, text, verdict: _again(row, prompt, text, verdict),
        runs_code=True,
    )  # fmt: skip


def _read(path: Path) -> list[Row]:
    catch = path.parent / "catch.hpp"
    extra = {"catch.hpp": catch.read_text(encoding="utf-8")} if path.stem == "cpp" and catch.exists() else {}
    return [{**row, "extra": extra} for row in read_rows(path)]


def _question(row: Row, form: str) -> str:
    files, _, _, solution = exercises.parts(row)
    said = [
        row["files"][name]
        for name in (".docs/introduction.md", ".docs/instructions.md", ".docs/instructions.append.md")
        if name in row["files"]
    ]
    shown = "\n".join(f"{name}\n```\n{files[name].rstrip()}\n```\n" for name in solution)
    return (
        "\n".join(text.strip() + "\n" for text in said)
        + f"\nChange these files so that they do what is asked above: {', '.join(solution)}\n"
        + "Keep the names of functions and classes, since tests call them by these names. Use the standard library alone.\n\n"
        + f"{_FORMS[form]}\n{shown}\n"
    )


def judge(row: Row, text: str, tools: Tools, language: str, form: str) -> Judgement:
    """Whether the tests pass after the answer's edits; for a second answer, after those of the first one too."""
    files, tests, reference, solution = exercises.parts(row)
    open_ = {name: files[name] for name in solution}
    for earlier in row.get("_earlier", ()):
        open_ = edits.apply(earlier, open_, form).files
    edited = edits.apply(text, open_, form)
    formed = {"well_formed": float(edited.well_formed)}
    if not edited.well_formed and edited.files == open_:
        return Judgement(0.0, None, edited.problem, formed)
    found = exercises.run(
        tools.sandbox, language, {**files, **edited.files}, tests, solution, row.get("extra", {}), [*files.values(), *reference.values()]
    )
    return Judgement(float(found.right), text, found.note, formed)


def _again(row: Row, prompt: str, text: str, verdict: Judgement) -> Attempt:
    """The second prompt; the first answer stays with the row, since the second one edits what the first one left."""
    row["_earlier"] = (text,)
    return Attempt(f"{prompt}{text}\n\nThis is what the tests say. They are right: correct the code above.\n\n{verdict.note}\n\n")
