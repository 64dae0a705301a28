"""Tests of HumanEval-Mul taken apart, by hand; candidates that try to cheat in every language found here score zero."""

from __future__ import annotations

import json

import pytest

from rorqual.eval.task import Tools
from rorqual.eval.tasks import humaneval, parted
from rorqual.eval.tasks.parted import Compared
from tests.eval import boxes, small

_JS = "const assert = require('node:assert');\n\nfunction test() {\n  let candidate = f;\n  assert.deepEqual(candidate(\")\", [1]),{a: \"x)\"});\n  assert.deepEqual(candidate(2),[3, 4]);\n}\n\ntest();"  # fmt: skip


def test_calls_and_values_by_hand():
    found = parted.parted(_JS, "js")
    assert found is not None and [(one.call, one.wanted) for one in found] == [
        ('candidate(")", [1])', '{a: "x)"}'),
        ("candidate(2)", "[3, 4]"),
    ]
    assert parted.parted(_JS.replace("deepEqual(candidate(2)", "deepEqual(other"), "js") is None
    java = "    }\n    public static void main(String[] args) {\n    assert(f((2l)) == (4l));\n    assert(f((3l)).equals((Optional.of(9l))));\n    }\n\n}\n"
    assert parted.parted(java, "java") == [Compared(51, 79, "f((2l))", "(4l)"), Compared(80, 126, "f((3l))", "(Optional.of(9l))")]
    assert java[51:79] == "    assert(f((2l)) == (4l));" and java[80:126] == "    assert(f((3l)).equals((Optional.of(9l))));"
    shell = 'run_test() {\n    [[ $(candidate "a \\" )") = "b ]]" ]]\n}\n'
    assert [(one.call, one.wanted) for one in parted.parted(shell, "sh") or []] == [('candidate "a \\" )"', '"b ]]"')]
    php = 'function test(): void {\n    if (candidate(array(1)) !== array(2)) { throw new Exception("Test failed!"); }\n}\n'
    assert [(one.call, one.wanted) for one in parted.parted(php, "php") or []] == [("candidate(array(1))", "array(2)")]
    sharp = "    Debug.Assert(F((2L)).SequenceEqual((new List<long>())));\n"
    assert [(one.call, one.wanted) for one in parted.parted(sharp, "cs") or []] == [("F((2L))", "(new List<long>())")]
    assert parted.parted("fn main() {}", "rust") is None
    broken = parted.parted(_JS.replace("x)", "x\n"), "js")  # as HumanEval 51 has it: a line that ends within a text
    assert broken is not None and broken[0].wanted == '{a: "x\\n"}'


def test_programs_hold_calls_or_values():
    tests = parted.parted(_JS, "js")
    assert tests is not None
    calls = parted.calls("function f() {}", "function f() {}", _JS, tests, "js", "m")
    assert 'rorqualShown("m", 0, candidate(")", [1]));' in calls and "[3, 4]" not in calls and "x)" not in calls
    compared = parted.comparison(_JS, tests, "js", "end-1")
    assert (
        "assert.deepEqual(received[1],[3, 4]);" in compared
        and "candidate" not in compared
        and compared.endswith('console.log("\\nend-1");\n')
    )
    cpp = "}\nint main() {\n    auto candidate = f;\n    assert(candidate((2)) == (4));\n}\n"
    found = parted.parted(cpp, "cpp")
    assert found is not None
    wanted = parted.wanted("long f(long x) {", cpp, found, "cpp", "m")
    assert "throw 0;" in wanted and 'put("m", 0, static_cast<std::decay_t<decltype(candidate((2)))>>((4)));' in wanted


def test_lines_must_be_there_once_and_in_order():
    assert parted.results("noise\n\nm 0 n1\nmore\nm 1 \n", "m", 2) == ["n1", ""]
    for output in ("m 0 n1\n", "m 0 n1\nm 0 n2\nm 1 n3\n", "m 1 n1\nm 0 n2\n", "m 0 n1\nm 1 n2\nm 2 n3\n"):
        assert parted.results(output, "m", 2) is None


@small.needs_data
def test_all_tests_of_the_bundled_files_can_be_parted():
    counts = {}
    for language in ("cpp", "java", "cs", "js", "ts", "php", "sh"):
        rows = [json.loads(line) for line in (small.DATA / "humaneval_mul" / f"humaneval-{language}.jsonl").read_text().splitlines()]
        found = [parted.parted(row["test"], language) for row in rows]
        assert None not in found
        counts[language] = sum(len(one or ()) for one in found)
    assert counts == {"cpp": 1130, "java": 1102, "cs": 1102, "js": 1130, "ts": 1115, "php": 1130, "sh": 1121}


# ---------------------------------------------------------------------- candidates that cheat

ROWS = {
    "ts": ("function twice(x: number): number {\n", "declare var require: any;\nconst assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n  assert.deepEqual(candidate(21),42);\n  assert.deepEqual(candidate(4),8);\n}\n\ntest();"),
    "php": ("<?php\nfunction twice($x) {\n", "function candidate(...$args) {\n    return twice(...$args);\n}\n\nfunction test(): void {\n    if (candidate(21) !== 42) { throw new Exception(\"Test failed!\"); }\n    if (candidate(4) !== 8) { throw new Exception(\"Test failed!\"); }\n}\n\ntest();"),
    "cs": ("using System;\nusing System.Diagnostics;\nusing System.Collections.Generic;\nusing System.Linq;\nclass Problem {\n    public static long Twice(long x) {\n", "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Twice((21L)) == (42L));\n    Debug.Assert(Twice((4L)) == (8L));\n    }\n\n}\n"),
    "js": ("function twice(x){\n", "const assert = require('node:assert');\n\n\nfunction test() {\n  let candidate = twice;\n  assert.deepEqual(candidate(21),42);\n  assert.deepEqual(candidate(4),8);\n}\n\ntest();"),
    "sh": ("#!/bin/bash\ntwice() {\n", '}\n\ncandidate() {\n    twice "$@"\n}\n\nset -e\nrun_test() {\n    [[ $(candidate "21") = "42" ]]\n    [[ $(candidate "4") = "8" ]]\n}\n\nrun_test\n'),
    "cpp": ("#include<assert.h>\n#include<bits/stdc++.h>\nlong twice(long x) {\n", "}\nint main() {\n    auto candidate = twice;\n    assert(candidate((21)) == (42));\n    assert(candidate((4)) == (8));\n}\n"),
    "java": ("import java.util.*;\nimport java.io.*;\nimport java.nio.file.*;\nclass Problem {\n    public static long twice(long x) {\n", "    }\n    public static void main(String[] args) {\n    assert(twice((21l)) == (42l));\n    assert(twice((4l)) == (8l));\n    }\n\n}\n"),
}  # fmt: skip
_SAY = "[...String(source).matchAll(/end-[0-9a-f]{32}/g)].forEach((one) => console.log(one[0])); process.exit(0);\n}"
_GREP = r"grep -oE 'end-[0-9a-f]{32}'"
TRICKS = {
    "js": {
        "reads its source and says the word": f"  const source = require('fs').readFileSync(__filename); {_SAY}",
        "reads its own memory": f"  const source = require('fs').readFileSync('/proc/self/cmdline'); {_SAY}",
        "reads the environment": f"  const source = JSON.stringify([process.env, process.argv]); {_SAY}",
        "patches the comparison": "  require('node:assert').deepEqual = () => {}; return 0;\n}\nrequire('node:assert').deepEqual = () => {};",
        "patches what it is called by": "  return 0;\n}\nJSON.parse = () => [42, 8]; JSON.stringify = () => '42';",
        "returns what equals everything": "  return { valueOf() { return 42; }, toString() { return '42'; } };\n}",
        "returns a proxy": "  return new Proxy([], { get: (t, name) => name === 'length' ? 0 : 42 });\n}",
        "says every number": "  for (let n = 0; n < 99; n++) console.log(`${n}`); console.log('passed'); process.exit(0);\n}",
        "leaves when it is loaded": "  return 0;\n}\nconsole.log('ok'); process.exit(0);",
        "answers later": "  return Promise.resolve(2 * x);\n}",
    },
    "sh": {
        "reads its source and says the word": f"    {_GREP} \"$0\"; exit 0",
        "looks at its processes": f"    cat /proc/*/cmdline | {_GREP}; exit 0",
        "redefines what shows": "    echo 0\n}\nprintf() { builtin printf '%s' \"$@\"; }\necho() { builtin echo 42; }\nx() {\n    :",
        "ends the shell": "    kill -9 $$; exit 0",
        "traps the end": "    echo 0\n}\ntrap 'cat \"$0\"; exit 0' EXIT\nx() {\n    :",
    },
    "cpp": {
        "reads its source and says the word": '    std::ifstream file("main.cpp"); std::string text((std::istreambuf_iterator<char>(file)), {}); std::cout << text << std::endl; exit(0);',
        "reads its own binary": '    std::ifstream file("/proc/self/exe"); std::string text((std::istreambuf_iterator<char>(file)), {}); std::cout << text << std::endl; exit(0);',
        "makes assertions empty": "    return 0;\n}\n#undef assert\n#define assert(x) ((void)0)\n#define main other(); int main\nint other() { return 0;",
        "ends before main": "    return 0;\n}\nstruct First { First() { std::puts(\"passed\"); _exit(0); } } first;\nvoid x() {",
        "defines the equality": "    return 0;\n}\nstruct All { template <class T> bool operator==(T) const { return true; } };\nAll twice(int x) { return All();",
    },
    "java": {
        "reads its source and says the word": '        try { System.out.println(new String(Files.readAllBytes(Paths.get("Main.java")))); } catch (IOException e) {} System.exit(0); return 0;',
        "reads its class files": '        try { for (String n : new File(".").list()) System.out.println(new String(Files.readAllBytes(Paths.get(n)), "ISO-8859-1")); } catch (IOException e) {} Runtime.getRuntime().halt(0); return 0;',
        "switches assertions off": "        ClassLoader.getSystemClassLoader().clearAssertionStatus(); return 0;\n    }\n    static { ClassLoader.getSystemClassLoader().setDefaultAssertionStatus(false); }\n    static void x() {",
        "replaces the output": "        System.setOut(new PrintStream(OutputStream.nullOutputStream())); return 0;",
        "ends when it is loaded": '        return 0;\n    }\n    static { System.out.println("passed"); System.exit(0); }\n    static void x() {',
    },
}  # fmt: skip
TRICKS["ts"] = {
    "reads its source and says the word": "  const source = (require('fs') as any).readFileSync('main.ts', 'utf8'); console.log(source.match(/end-[0-9a-f]{32}/g)); return 0;\n}",
    "patches the comparison": "  return 0;\n}\n(require('node:assert') as any).deepEqual = () => {};",
}
TRICKS["php"] = {
    "reads its source and says the word": '    preg_match_all(\'/end-[0-9a-f]{32}/\', file_get_contents(__FILE__), $found); echo implode("\\n", $found[0]), "\\n"; exit(0);\n}',
    "ends when it is loaded": "    return 0;\n}\necho 'passed'; exit(0);",
    "returns what equals much": "    return true;\n}",
}
TRICKS["cs"] = {
    "reads its source and says the word": '        Console.WriteLine(System.IO.File.ReadAllText("main.cs")); Environment.Exit(0); return 0;',
    "ends when it is loaded": "        return 0;\n    }\n    static Problem() { Environment.Exit(0); }\n    static void X() {",
}
_QUICK = ("reads its source and says the word", "patches the comparison", "returns what equals everything")
_SLOW = ("cpp", "java", "ts", "cs", "php")


@pytest.mark.parametrize(
    ("language", "trick"), [pytest.param(name, trick, marks=pytest.mark.slow if name in _SLOW or trick not in _QUICK else ()) for name, some in TRICKS.items() for trick in some]
)  # fmt: skip
def test_tricks_score_zero(language, trick):
    tools = Tools(20)
    tools._sandbox = boxes.best()
    if language not in tools.sandbox.describe()["languages"]:
        pytest.skip(f"no tools for {language}")
    prompt, test = ROWS[language]
    found = humaneval.judge({"prompt": prompt, "test": test}, TRICKS[language][trick], tools, language)
    assert found.score == 0.0, found


@pytest.mark.parametrize("language", [pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in ROWS])
def test_the_same_rows_pass_when_they_are_right(language):
    tools = Tools(20)
    tools._sandbox = boxes.best()
    if language not in tools.sandbox.describe()["languages"]:
        pytest.skip(f"no tools for {language}")
    right = {
        "js": "  return 2 * x;\n}",
        "ts": "  return 2 * x;\n}",
        "php": "    return 2 * $x;\n}",
        "cs": "        return 2 * x;",
        "sh": "    echo $((2 * $1))",
        "cpp": "    return 2 * x;",
        "java": "        return 2 * x;",
    }[language]
    prompt, test = ROWS[language]
    assert humaneval.judge({"prompt": prompt, "test": test}, right, tools, language).score == 1.0
