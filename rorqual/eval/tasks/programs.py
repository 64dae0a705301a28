"""The code of an answer in the languages of HumanEval-Mul other than Python, as the tests go on from it. No torch.

The files are DeepSeek-Coder's: tests of C++, C#, Java and Bash begin with the brace that closes the function, those of JavaScript, TypeScript
and PHP do not. A chat model's block brings its own braces, and loses as many as the tests bring. `org.javatuples` is not part of a JDK; its
Pair, the only class of it that the problems use, is added as a record.
"""

from __future__ import annotations

import re

_PAIR = """
record Pair<A, B>(A getValue0, B getValue1) {
    public static <A, B> Pair<A, B> with(A a, B b) { return new Pair<>(a, b); }
    public A getValue0() { return getValue0; }
    public B getValue1() { return getValue1; }
    public String toString() { return "[" + getValue0 + ", " + getValue1 + "]"; }
}
"""
_CLOSED_BY_TESTS = {"cpp": 1, "sh": 1, "java": 2, "cs": 2}


def pair_class(code: str) -> tuple[str, str]:
    """Java without the import of javatuples, and the record that stands for its Pair, "" where it was not imported."""
    code, found = re.subn(r"^import org\.javatuples\.\*;\n", "", code, flags=re.MULTILINE)
    return code, _PAIR if found else ""


def joined(prompt: str, body: str, whole: bool, language: str) -> str:
    """The code before the tests: `prompt` and its continuation, or what a chat model wrote as a whole, with what `prompt` has above it."""
    if not whole:
        return prompt + body
    body = re.sub(r"^<\?php\s*", "", body.strip())
    head = prompt
    if language in ("java", "cs"):
        head, mark, _ = prompt.partition("class Problem {")
        if re.search(r"\bclass Problem\b", body):
            body = re.sub(r"(?s)\s*(?:public )?static void [Mm]ain\(.*", "\n}", body) if re.search(r"static void [Mm]ain\(", body) else body
            body = re.sub(r"\bpublic (?:static )?class Problem\b", "class Problem", body)
            head = "\n".join(line for line in head.splitlines() if line.strip() not in body) + "\n"
            return head + _without_braces(body, 2)
        return head + mark + "\n" + _without_braces(body, 1)
    lines = head.splitlines()
    kept = [line for line in lines if line.startswith(("#include", "<?php", "#!", "using "))]
    return "\n".join([*kept, _without_braces(body, _CLOSED_BY_TESTS.get(language, 0))]) + "\n"


def _without_braces(text: str, count: int) -> str:
    for _ in range(count):
        text = re.sub(r"\}\s*;?\s*\Z", "", text.rstrip())
    return text
