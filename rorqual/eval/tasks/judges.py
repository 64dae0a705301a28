"""Verdicts that several benchmarks share, from the checkers and the sandbox. No torch.

A judge takes a prepared row, the text and the tools. `answer` None says that nothing could be read: it scores 0 and counts as unparseable. A
score of None is a verdict that could not be made: it is counted, and stays out of the mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rorqual.eval.checkers import answers, instructions, maths
from rorqual.eval.checkers.maths import boxed
from rorqual.eval.task import Judgement, Row, Tools
from rorqual.eval.tasks import parted
from rorqual.eval.tasks.numbers import same_number

__all__ = [
    "boxed",
    "completion",
    "drop_scores",
    "judge_exact",
    "judge_f1",
    "judge_instructions",
    "judge_maths",
    "judge_maths_line",
    "judge_number",
    "judge_trivia",
    "run_code",
    "run_parted",
    "run_program",
]

_VALUE = re.compile(r"\\[dt]?frac\{-?\d+\}\{-?\d+\}|-?\$?\d[\d,]*(?:\.\d+)?(?:\s?/\s?\d+(?![\d.]))?|-?\.\d+")


def judge_exact(row: Row, text: str, tools: Tools) -> Judgement:
    """Equality with one of row["answers"] in SQuAD's form."""
    said = text.strip()
    return Judgement(answers.exact(said, row["answers"]), said) if answers.squad(said) else Judgement(0.0, None)


def judge_trivia(row: Row, text: str, tools: Tools) -> Judgement:
    """Equality with one of row["answers"] in TriviaQA's form."""
    said = text.strip()
    return Judgement(answers.exact(said, row["answers"], answers.trivia), said) if answers.trivia(said) else Judgement(0.0, None)


def judge_f1(row: Row, text: str, tools: Tools) -> Judgement:
    """Best F1 of words over row["answers"], exact equality beside it."""
    said = text.strip()
    if not answers.squad(said):
        return Judgement(0.0, None, parts={"exact_match": 0.0})
    return Judgement(answers.f1(said, row["answers"]), said, parts={"exact_match": answers.exact(said, row["answers"])})


def drop_scores(text: str, gold: list[str]) -> tuple[float, float]:
    """(exact, F1) by DROP's rules: the text as one span, or, for several right spans, also as what stands between its commas."""
    found = [answers.drop([text], gold)]
    if len(gold) > 1 and "," in text:
        found.append(answers.drop([part for part in text.split(",") if part.strip()] or [text], gold))
    return max(exact for exact, _ in found), max(f1 for _, f1 in found)


def judge_number(row: Row, text: str, tools: Tools) -> Judgement:
    """The last number of the text, or the last fraction, must have the value of row["answer"]."""
    found = _VALUE.findall(text)
    if not found:
        return Judgement(0.0, None)
    said = re.sub(r"\\[dt]?frac\{(-?\d+)\}\{(-?\d+)\}", r"\1/\2", found[-1]).replace(" ", "")
    return Judgement(float(same_number(said, row["answer"])), found[-1])


def judge_maths(row: Row, text: str, tools: Tools) -> Judgement:
    """The answer in the last box, or behind "answer is", must equal row["gold"]; undecided where that could not be told."""
    return _equal(row["gold"], maths.answer_of(text), tools)


def judge_maths_line(row: Row, text: str, tools: Tools) -> Judgement:
    """As `judge_maths`; a text that names no answer is one itself, up to its first line's end: for prompts that end in "answer:"."""
    said = maths.answer_of(text)
    shown = maths.visible(text)
    if said is None and shown is not None and "\\boxed" not in shown:
        line = shown.strip().split("\n")[0]
        inner = re.findall(r"\$([^$]+)\$", line)
        said = (inner[-1] if inner else line).strip().rstrip("。.").strip() or None
    return _equal(row["gold"], said, tools)


def _equal(gold: str, said: str | None, tools: Tools) -> Judgement:
    if said is None:
        return Judgement(0.0, None)
    verdict = maths.judge(gold, said, tools.seconds)
    return Judgement({"right": 1.0, "wrong": 0.0}.get(verdict.word), said, verdict.note)


def judge_instructions(row: Row, text: str, tools: Tools) -> Judgement:
    """Whether every instruction is followed, strictly; loosely and by instruction beside it."""
    ids, given = row["instruction_id_list"], row["kwargs"]
    strictly, loosely = instructions.strict(ids, given, text), instructions.loose(ids, given, text)
    parts = {
        "prompt_loose": float(all(loosely)),
        "instruction_strict": sum(strictly) / len(strictly),
        "instruction_loose": sum(loosely) / len(loosely),
    }
    note = ", ".join(name for name, held in zip(ids, strictly, strict=True) if not held)
    return Judgement(float(all(strictly)), text if text.strip() else None, f"not followed: {note}" if note else "", parts)


# ---------------------------------------------------------------------- code

_FENCE = re.compile(r"```[\w+#-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def completion(text: str, prompt: str) -> tuple[str, bool]:
    """(code, whether it is a whole program) of an answer: of a chat model's fenced block, or of a plain continuation of `prompt`.

    Reasoning is left out, and what follows a fence that closes a plain continuation. A block is whole unless it continues the prompt; of several the one that defines what the prompt asks for, else the
    last.
    """
    shown = maths.visible(text)
    if shown is None:
        return "", False
    blocks = _FENCE.findall(shown)
    cut = shown.find("```")
    if not blocks or (prompt and shown[:1].isspace() and shown.count("```") == 1):
        return (shown if cut < 0 else shown[:cut]), not prompt
    wanted = re.findall(r"^\s*(?:async )?def (\w+)", prompt, re.MULTILINE)
    mine = [block for block in blocks if wanted and re.search(rf"\bdef {wanted[-1]}\b", block)]
    code = (mine or blocks)[-1]
    return code, not prompt or bool(mine) or not code.startswith((" ", "\t"))


def run_code(code: str, tests: str, tools: Tools, *, entry: str = "", context: str = "") -> Judgement:
    """Whether Python `code` passes `tests`, which run apart from it; `entry` and `context` as in rorqual/eval/grade.py."""
    from rorqual.eval import grade

    found = grade.grade(tools.sandbox, code, tests, entry=entry, context=context, seconds=tools.seconds)
    return Judgement(float(found.right), code, found.note)


def run_parted(code: str, prompt: str, text: str, language: str, tools: Tools) -> Judgement:
    """Whether every call that the tests make gives the value wanted, compared outside of the program.

    `code` ends inside the function that `prompt` begins, and `text` goes on from there (see tasks/parted.py). A verdict that the tests' own
    program could not give (no compiler for it, a limit) is no verdict, and so it is with tests that cannot be parted: code that runs beside
    what it is compared with could find it, so it is not run.
    """
    from rorqual.eval import grade

    tests = parted.parted(text, language)
    if tests is None:
        return Judgement(None, code, f"a test of this {language} problem is not one call compared with one value, so it cannot be judged")
    mark, seconds = grade.secret_word(), max(tools.seconds, 30.0)
    done = tools.sandbox.run(parted.calls(code, prompt, text, tests, language, mark), language=language, seconds=seconds)
    said = parted.results(done.stdout, mark, len(tests))
    if said is None or done.limit or done.returncode:
        return Judgement(0.0, code, grade.why(done) or "the tests did not reach their end")
    if language in ("js", "ts"):
        word = grade.secret_word()
        given = f"[{','.join(said)}]"
        found = tools.sandbox.run(parted.comparison(text, tests, language, word), stdin=given, language="js", seconds=seconds)
        right = found.returncode == 0 and found.stdout.rstrip("\n").rpartition("\n")[2] == word
        return Judgement(float(right), code, "" if right else grade.why(found) or "wrong result")
    key = f"{language}\0{prompt}\0{text}"
    if key not in tools.wanted:
        found = tools.sandbox.run(parted.wanted(prompt, text, tests, language, mark), language=language, seconds=seconds)
        values = parted.results(found.stdout, mark, len(tests))
        if values is None or found.returncode or found.limit:
            return Judgement(None, code, f"the program of the values wanted did not run: {grade.why(found)}")
        tools.wanted[key] = values
    wrong = next((number for number, (one, other) in enumerate(zip(said, tools.wanted[key], strict=True)) if one != other), None)
    return Judgement(float(wrong is None), code, "" if wrong is None else f"test {wrong}: wrong result")


def run_program(code: str, cases: Sequence[tuple[str, str]], tools: Tools) -> Judgement:
    """Whether a Python program gives the wanted output for every (standard input, output)."""
    from rorqual.eval import grade

    found = grade.grade_output(tools.sandbox, code, cases, seconds=tools.seconds)
    return Judgement(float(found.right), code, found.note)
