"""Programs of code and tests together, in the languages of HumanEval-Mul other than Python; they say a word after the last test. No torch.

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


def program(code: str, tests: str, language: str, word: str) -> str:
    """`code` (prompt and completion), then `tests`, then saying `word` on a line of its own."""
    match language:
        case "cpp":
            head, mark, body = tests.partition("int main() {")
            body = re.sub(r"\}\s*\Z", f'    std::cout << "\\\\n{word}" << std::endl;\n}}\n', body)
            return f"{code}\n{head}\n#undef NDEBUG\n#include <assert.h>\n#include <iostream>\n{mark}{body}"
        case "java":
            code, pair = pair_class(code)
            main = (
                "class Main {\n    public static void main(String[] given) throws Exception {\n"
                "        ClassLoader.getSystemClassLoader().setDefaultAssertionStatus(true);\n"
                f'        Problem.main(given);\n        System.out.println("\\n{word}");\n    }}\n}}\n'
            )
            return f"{code}\n{tests}\n{pair}{main}"
        case "cs":
            tests = tests.replace("Debug.Assert(", "Held(")
            held = "    static void Held(bool held) { if (!held) Environment.Exit(1); }\n"
            tests = re.sub(r"\}\s*\}\s*\Z", f'    Console.WriteLine("\\\\n{word}");\n    }}\n{held}}}\n', tests)
            return f"{code}\n{tests}"
        case "js" | "ts":
            return f'{code}\n{tests}\nconsole.log("\\n{word}");\n'
        case "php":
            return f'{code}\n{tests}\necho "\\n{word}\\n";\n'
        case _:  # sh
            return f"{code}\n{tests}\necho\necho {word}\n"


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
