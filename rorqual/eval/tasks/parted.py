"""Tests in the form of HumanEval-Mul taken apart: one program has the calls and the candidate, another one the values wanted. No torch.

Every test of these files compares one call with one value (`assert(candidate((2)) == (4));`). The candidate's program makes the calls and
shows what came of each as a line of text; a program without the candidate shows the values wanted in the same way, and the two texts are
compared by neither. So no value that is wanted is ever in the candidate's program, file or memory, and there is nothing that he could print
to pass. In JavaScript and TypeScript the second program gets the shown results and makes the original comparison, which is a loose one.
Numbers are shown by value (an int equals a long of the same value, as in the tests), floats to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from rorqual.eval.tasks import shown, unions
from rorqual.eval.tasks.programs import pair_class

_FORMS = {  # how a test begins; what stands between call and value; what the two end with
    "cpp": (r"^    assert\(", r" == ", ");"),
    "java": (r"^    assert\(", r" == |\.equals\(", ");"),
    "cs": (r"^    Debug\.Assert\(", r" == |\.Equals\(|\.SequenceEqual\(", ");"),
    "js": (r"^  assert\.deepEqual\(", r",", ");"),
    "ts": (r"^  assert\.deepEqual\(", r",", ");"),
    "php": (r"^    if \(", r" !== ", ') { throw new Exception("Test failed!"); }'),
    "sh": (r"^    \[\[ \$\(", r" = ", " ]]"),
}
_MARKS = {
    "cpp": "assert(", "java": "assert(", "cs": "Debug.Assert(", "js": "assert.deepEqual(", "ts": "assert.deepEqual(", "php": "throw new",
    "sh": "$(candidate ",
}  # fmt: skip
"""What every test has once."""
_UNWRITTEN = {"cpp": "throw 0;", "java": "throw new RuntimeException();", "cs": "throw new Exception();", "sh": ":"}


@dataclass(frozen=True)
class Compared:
    """One test: its place in the text, the call, and the value wanted, both as source."""

    start: int
    end: int
    call: str
    wanted: str


def parted(tests: str, language: str) -> list[Compared] | None:
    """The tests of a file's text; None where one of them has another form, and then they cannot be parted."""
    if language not in _FORMS:
        return None
    begins, between, ends = _FORMS[language]
    found: list[Compared] = []
    for start in re.finditer(begins, tests, re.MULTILINE):
        opening = start.end() if language == "sh" else tests.find("(", start.end()) + 1
        close = closing(tests, opening, language) if opening else -1
        joint = re.compile(between).match(tests, close + 1) if close >= 0 else None
        if joint is None:
            return None
        wanted = joint.end()
        outer = closing(tests, wanted, language, "]" if language == "sh" else ")")
        if joint[0].endswith("(") and outer >= 0:  # the joint's own bracket
            wanted, last = joint.end(), outer
            outer = closing(tests, outer + 1, language)
        else:
            last = outer
        end = outer - (1 if language == "sh" else 0)
        if outer < 0 or not tests.startswith(ends, end):
            return None
        call = tests[opening:close] if language == "sh" else tests[start.end() : close + 1]
        value = tests[wanted:last].strip()
        if language in ("js", "ts"):  # HumanEval 51 has line ends in texts, which no JavaScript may have
            call, value = call.replace("\n", "\\n"), value.replace("\n", "\\n")
        found.append(Compared(start.start(), end + len(ends), call, value))
    return found if found and len(found) == tests.count(_MARKS[language]) else None


def closing(text: str, at: int, language: str, close: str = ")") -> int:
    """Where the bracket that is open at `at` ends, strings left out; -1 if nowhere."""
    depth, quotes = 0, "\"'`" if language in ("js", "ts") else "\"'"
    while at < len(text):
        one = text[at]
        if one == "\\":
            at += 1
        elif one in quotes:
            at += 1
            while at < len(text) and text[at] != one:
                at += 2 if text[at] == "\\" else 1
        elif one == close and depth == 0:
            return at
        elif one in "([{":
            depth += 1
        elif one in ")]}":
            depth -= 1
        at += 1
    return -1


def calls(code: str, prompt: str, text: str, tests: list[Compared], language: str, mark: str) -> str:
    """The candidate's program: every test of `text` is replaced by showing its call's result behind `mark` and its number."""
    body = _replaced(text, tests, lambda number, test: shown.statement(language, number, test.call, mark))
    return _program(code, prompt, body, language)


def wanted(prompt: str, text: str, tests: list[Compared], language: str, mark: str) -> str:
    """The program that shows the values wanted; `prompt` is there for what it declares, and its function is never run."""
    place = _replaced(text, tests, lambda number, test: shown.statement(language, number, test.wanted, mark, of=test.call))
    return _program("<?php\n" if language == "php" else f"{prompt}\n{_UNWRITTEN[language]}\n", prompt, place, language)


def comparison(text: str, tests: list[Compared], language: str, word: str) -> str:
    """JavaScript, of TypeScript's tests too: the tests over results that are read from standard input; it says `word` where all held."""
    body = _replaced(text, tests, lambda number, test: f"  assert.deepEqual(received[{number}],{test.wanted});")
    body = re.sub(r"^  let candidate = \w+;\n", "", body, flags=re.MULTILINE).replace("declare var require: any;\n", "")
    return f'{shown.RECEIVED}\n{body}\nconsole.log("\\n{word}");\n'


def _replaced(text: str, tests: list[Compared], made: Callable[[int, Compared], str]) -> str:
    parts, at = [], 0
    for number, test in enumerate(tests):
        parts += [text[at : test.start], made(number, test)]
        at = test.end
    return "".join([*parts, text[at:]])


def _program(code: str, prompt: str, tests: str, language: str) -> str:
    """Code, the changed tests, and what shows values in that language; `prompt` declares the types of its own."""
    match language:
        case "cpp":
            head, mark, body = tests.partition("int main() {")
            return f"{unions.tagged(code)}\n{head}\n{shown.CPP}{unions.showing(prompt)}\n{mark}{body}"
        case "java":
            code, used = pair_class(code)
            main = "class Main {\n    public static void main(String[] given) throws Exception { Problem.main(given); }\n}\n"
            return f"{code}\n{tests}\n{used}{main}{shown.JAVA}"
        case "cs":
            return f"{code}\n{tests}\n{shown.CS}"
        case "js" | "ts":
            return f"{shown.JS}\n{code}\n{tests}\n"
        case _:  # php, sh
            return f"{code}\n{tests}\n"


def results(output: str, mark: str, count: int) -> list[str] | None:
    """What a program showed, in order; None unless there is exactly one line for each test."""
    lines = [line.split(" ", 2)[1:] for line in output.split("\n") if line.startswith(f"{mark} ")]
    if [line[0] for line in lines] != [str(number) for number in range(count)]:
        return None
    return [line[1] if len(line) > 1 else "" for line in lines]
