"""LiveCodeBench: contest problems with hidden tests, by standard input or by a function (Jain et al. 2024); 3 shots, pass@1. No torch.

Upstream packs private tests as a pickle; nothing here unpickles, so the file must hold them as JSON: `tests` or `public_test_cases` and
`private_test_cases`, each a list (or JSON text of one) of {"input", "output", "testtype"}.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.judges import completion, run_code, run_program

_BEGIN = "You will be given a question (problem specification) and will write a correct Python program that passes all tests."


def task(name: str) -> GenerationTask:
    """`livecodebench`."""
    return GenerationTask(
        name=name, version=1, files=("livecodebench/test.jsonl", "livecodebench.jsonl"),
        form="JSON lines with 'question_id', 'question_content', 'starter_code' and tests as JSON (see tasks/livecodebench.py)",
        fields=("question_id", "question_content"), shots=3, row_id="question_id", prepare=_prepare, shot_files=("livecodebench/shots.jsonl",),
        question=_question, answer=lambda row: f"{row['code']}\n```", target_delimiter="", metric="pass@1", stop=("\n```",), max_tokens=2048,
        judge=judge, runs_code=True,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    tests = [test for key in ("tests", "public_test_cases", "private_test_cases") for test in _listed(row.get(key))]
    code = row.get("code", "")
    if not tests and not code:
        raise ValueError("there are no tests; they must be JSON, upstream's packed ones are a pickle")
    meta = row.get("metadata") or {}
    meta = json.loads(meta) if isinstance(meta, str) else meta
    if any(test.get("testtype") == "functional" for test in tests) and not meta.get("func_name"):
        raise ValueError("functional tests need 'func_name' in 'metadata'")
    return {
        "question": row["question_content"], "starter": row.get("starter_code") or "", "tests": tests, "function": meta.get("func_name"), "code": code,
    }  # fmt: skip


def _listed(value: Any) -> list[Row]:
    if value is None or value == "":
        return []
    found = json.loads(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, dict) and {"input", "output"} <= set(one) for one in found):
        raise ValueError("tests must be a list of objects with 'input' and 'output'")
    return found


def _question(row: Row) -> str:
    ask = "Read the inputs from stdin, solve the problem and write the answer to stdout."
    if row["starter"]:
        ask = f"Use the following starter code:\n{row['starter'].rstrip()}"
    return f"{_BEGIN}\n\nQuestion:\n{row['question'].strip()}\n\n{ask}\n\nAnswer:\n```python\n"


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """Whether all tests pass: outputs compared line by line without spaces at line ends, results of functions as literals."""
    body, _ = completion(text, "")
    if not body.strip():
        return Judgement(0.0, None)
    functional = [test for test in row["tests"] if test.get("testtype") == "functional"]
    if not functional:
        return run_program(body, [(test["input"], test["output"]) for test in row["tests"]], tools)
    call = f"Solution().{row['function']}" if "class Solution" in body else row["function"]
    lines = []
    for test in functional:
        given = ", ".join(repr(ast.literal_eval(_as_python(line))) for line in test["input"].strip().split("\n"))
        lines.append(f"assert {call}({given}) == {ast.literal_eval(_as_python(test['output']))!r}")
    return run_code("from typing import *\n" + body, "\n".join(lines), tools)


def _as_python(text: str) -> str:
    """JSON's words for Python's."""
    try:
        return repr(json.loads(text))
    except ValueError:
        return text
