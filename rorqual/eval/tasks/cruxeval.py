"""CRUXEval: an input that gives an output, or the output of an input (Gu et al. 2024); 2 shots, answers between [ANSWER] tags. No torch.

An output is compared as a literal, without running anything of the model's. An input is run in the sandbox.
"""

from __future__ import annotations

import ast
import re

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.judges import run_code

_INPUT = (
    "You will be given a function f and an output in the form f(??) == output. Find any input such that executing f on the input leads to the "
    "given output. There may be multiple answers, but you should only output one. In [ANSWER] and [/ANSWER] tags, complete the assertion with "
    "one such input that will produce the output when executing the function.\n"
)
_OUTPUT = (
    "You are given a Python function and an assertion containing an input to the function. Complete the assertion with a literal (no "
    "unsimplified expressions, no function calls) containing the output when executing the provided code on the given input, even if the "
    "function is incorrect or incomplete. Do NOT output any extra information. Provide the full assertion with the correct output in [ANSWER] "
    "and [/ANSWER] tags, following the examples.\n"
)


def task(name: str) -> GenerationTask:
    """`cruxeval_i` or `cruxeval_o`."""
    inputs = name == "cruxeval_i"
    return GenerationTask(
        name=name, version=1, files=("cruxeval/cruxeval.jsonl", "cruxeval.jsonl"), form="JSON lines with 'id', 'code', 'input' and 'output'",
        fields=("id", "code", "input", "output"), shots=2, row_id="id", description=_INPUT if inputs else _OUTPUT,
        question=_ask_input if inputs else _ask_output, answer=lambda row: f"\n[ANSWER]\nassert f({row['input']}) == {row['output']}\n[/ANSWER]",
        stop=("[/ANSWER]",), max_tokens=256, judge=judge_input if inputs else judge_output, runs_code=inputs,
    )  # fmt: skip


def _ask_input(row: Row) -> str:
    return f"[PYTHON]\n{row['code']}\nassert f(??) == {row['output']}\n[/PYTHON]"


def _ask_output(row: Row) -> str:
    return f"[PYTHON]\n{row['code']}\nassert f({row['input']}) == ??\n[/PYTHON]"


def _said(text: str) -> str:
    """The answer without its tag and without `assert`."""
    return text.rpartition("[ANSWER]")[2].strip().removeprefix("assert").strip()


def judge_output(row: Row, text: str, tools: Tools) -> Judgement:
    """The literal after "==" must be the output, in value and in type."""
    said = _said(text)
    said = said.rpartition("==")[2].strip() if "==" in said else said
    try:
        value, gold = _literal(said), _literal(row["output"])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return Judgement(0.0, None)
    return Judgement(float(repr(value) == repr(gold) or (type(value) is type(gold) and value == gold)), said)


def _literal(text: str) -> object:
    return set() if text.strip() == "set()" else ast.literal_eval(text)


def judge_input(row: Row, text: str, tools: Tools) -> Judgement:
    """`f(said input) == output` must hold when it is run."""
    said = _said(text)
    call = said.partition("==")[0].strip() if re.match(r"f\s*\(", said) else f"f({said})"
    if not said or not _is_plain_call(call):
        call = said  # "==" may stand inside a text
    if not said or not _is_plain_call(call):
        return Judgement(0.0, None)
    verdict = run_code(row["code"], f"assert {call} == {row['output']}", tools)
    return Judgement(verdict.score, call, verdict.note)


def _is_plain_call(text: str) -> bool:
    """Whether it is f(...) of literals alone: nothing that could take over the assertion around it."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id != "f":
            return False
        for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
            _literal(ast.unparse(argument))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return True
