"""Tests turned around, by hand; what reaches out of an exercise; candidates that cheat in their own process score zero."""

from __future__ import annotations

import pytest

from rorqual.eval.tasks import contrary, exercises
from tests.eval import boxes

RUST = "use inc::inc;\n#[test]\nfn a() { assert_eq!(inc(1), 2); }\n#[test]\n#[ignore]\nfn b() { let x = inc(2); assert_ne!(x, 2); assert_eq!(x, 3); }\n#[test]\nfn c() { assert!(inc(3) == 4); }\n"
CPP = '#include "inc.h"\n#include "test/catch.hpp"\nTEST_CASE("one, \\"a\\"") { REQUIRE(inc(1) == 2); }\nTEST_CASE("two") { REQUIRE_FALSE(inc(2) == 2); }\n'
JAVA = "import org.junit.jupiter.api.*;\nclass IncTest {\n @Test void a() { Assertions.assertEquals(2, Inc.inc(1)); }\n @Test\n public void b() { Assertions.assertTrue(Inc.inc(2) == 3); }\n}"
GO = 'package inc\n\nfunc TestA(t *testing.T) {\n\tfor _, n := range testCases {\n\t\tif Inc(n) != n+1 {\n\t\t\tt.Fatal(n)\n\t\t}\n\t}\n}\n\nfunc TestB(t *testing.T) {\n\tif got := Inc(2); got != 3 {\n\t\tt.Errorf("x")\n\t}\n}\n\nfunc TestC(t *testing.T) {\n\tcheck(t, 3)\n\tif wanted {\n\t\tif x {\n\t\t}\n\t}\n}\n\nfunc TestD(t *testing.T) {\n\tif !equal(x) {\n\t\tfor i := range x {\n\t\t\tif x[i] != y[i] {\n\t\t\t\tt.Fatal(i)\n\t\t\t}\n\t\t}\n\n\t\tt.Fatal(x)\n\t}\n}\n'
JS = "import { inc } from './inc';\ndescribe('inc', () => {\n  test('it\\'s one', () => { expect(inc(1)).toBe(2); });\n  xtest(\"two\", () => { expect(inc(2)).not.toEqual(2); });\n});\n"


@pytest.mark.parametrize(
    ("language", "file", "text", "pieces"),
    [
        ("rust", "tests/inc.rs", RUST, [("a", "assert_ne!("), ("b", "assert_eq!("), ("c", None)]),
        ("rust", "tests/inc.rs", "#[test]\n#[ignore]\n/// Said.\nfn a() { assert!(inc(1).even()); assert_eq!(1, 1); }\n", [("a", "assert!(false == ")]),
        ("go", "inc_test.go", GO, [("TestA", "\t\tif !(Inc(n) != n+1) {"), ("TestB", "\tif got := Inc(2); !(got != 3) {"), ("TestC", None), ("TestD", "\tif !(!equal(x)) {")]),
        ("javascript", "inc.spec.js", "test('a', async () => { await expect(inc(1)).resolves.toBe(2); });", [("a", ").resolves.not.to")]),
        ("cpp", "inc_test.cpp", 'TEST_CASE("a") { REQUIRE_THAT(inc(1, 2),\n Catch::Matchers::WithinAbs(2, 1)); }', [("a", "REQUIRE_THAT(inc(1, 2),\n !")]),
        ("java", "IncTest.java", "class T {\n @Test void a() { assertThat(inc(1)).containsExactly(2); }\n @Test void b() { assertThat(x).isCloseTo(2, y); }\n @Test void c() { assertThat(s.isEmpty()).isTrue(); }\n @Test void d() { assertThat(f(1)).isEmpty(); }\n @Test void e() { assertThat(x).isEqualTo(1, within(z)); }\n}", [("a", ".doesNotContain("), ("b", ".isNotCloseTo("), ("c", ".isFalse()"), ("d", ").isNotEmpty()"), ("e", ".isNotCloseTo(")]),
        ("cpp", "inc_test.cpp", CPP, [('one, "a"', "REQUIRE_FALSE("), ("two", "REQUIRE(")]),
        ("java", "IncTest.java", JAVA, [("a", "assertNotEquals("), ("b", "assertFalse(")]),
        ("javascript", "inc.spec.js", JS, [("it's one", ").not.to"), ("two", ").to")]),
    ],
)  # fmt: skip
def test_pieces_by_hand(language, file, text, pieces):
    found = contrary._pieces(language, text)
    assert [(name, place and place[2]) for name, place in found] == pieces
    seen = set()
    for _ in range(40):
        made, names = contrary.turned(language, {file: text})
        assert names and made[file] != text and names <= {name for name, new in pieces if new}
        changed = {name for (name, _), (_, other) in zip(pieces, contrary._pieces(language, made[file]), strict=True) if (other and other[2]) != dict(pieces)[name]}  # fmt: skip
        assert changed == names
        seen.add(frozenset(names))
    assert len(seen) > 1 or len(pieces) == 1


def test_what_is_compiled_only_on_request_cannot_be_turned():
    """A test of Rust behind a feature does not run, so it cannot fail."""
    text = '#[test]\n#[ignore]\n#[cfg(feature = "more")]\nfn a() { assert_eq!(inc(1), 2); }\n#[test]\nfn b() { assert_eq!(inc(2), 3); }\n'
    assert [(name, place and place[2]) for name, place in contrary._pieces("rust", text)][0] == ("a", None)
    assert contrary.turned("rust", {"tests/inc.rs": f"{text}// {'-' * 80}\n#[test]\nfn c() {{ assert_eq!(inc(3), 4); }}\n"})[1] <= {
        "b",
        "c",
    }


def test_helpers_behind_a_test_are_no_part_of_it():
    text = 'TEST_CASE("a") {\n    check(1);\n}\nvoid check(int n) { REQUIRE(n == 1); }\n'
    assert contrary._pieces("cpp", text) == [("a", None)]


HELPED = {
    "rust": ("fn check(n: i32, m: &[i32]) {\n    assert_eq!(inc(n), m[0]);\n}\n", "#[test]\nfn a() {\n    check(1, &[2]);\n}\n", "assert_ne!("),
    "cpp": ("template<typename T>\nstatic void check(const T& n)\n{\n    REQUIRE(inc(n) == 2);\n}\n", 'TEST_CASE("a")\n{\n    check<int>(1);\n}\n', "REQUIRE_FALSE("),
    "java": ("class T {\n    private void check(int n) {\n        assertEquals(2, inc(n));\n    }\n", "    @Test\n    void a() {\n        check(1);\n    }\n}\n", "assertNotEquals("),
    "go": ("func check(t *testing.T, n int) {\n\tif Inc(n) != 2 {\n\t\tt.Fatal(n)\n\t}\n}\n", "func TestA(t *testing.T) {\n\tcheck(t, 1)\n}\n", "if !(Inc(n) != 2) {"),
}  # fmt: skip


@pytest.mark.parametrize("language", HELPED)
def test_assertions_of_helpers_are_turned_in_a_copy(language):
    helper, test, new = HELPED[language]
    made, names = contrary.turned(language, {"x": helper + test})
    assert len(names) == 1 and "turned_check" in made["x"] and helper.rstrip("\n") in made["x"] and new in made["x"]
    assert made["x"].endswith(test.replace("check", "turned_check")) or language == "java"
    assert made["x"].count("turned_check") == 2


def test_go_tests_tell_how_they_ended():
    told = contrary.telling("go", GO, "w")
    assert (
        told.count("defer func() {") == 4
        and 'if t.Failed() {\n\t\t\tprintln("\\nw failed TestB")' in told
        and contrary.telling("rust", RUST, "w") == RUST
    )
    assert (
        contrary.failed("go", "x\nw passed TestA\nw failed TestB\n", "w") == {"TestB"}
        and contrary.failed("go", "--- FAIL: TestB (0s)", "w") is None
    )


def test_what_cannot_be_turned_is_left():
    text = "#[test]\n#[should_panic]\nfn a() { assert_eq!(1, 2); }\n"
    for language in ("rust", "go", "python"):
        assert contrary.turned(language, {"a": text}) == ({"a": text}, set())


def test_failed_tests_are_read():
    assert contrary.failed("rust", "test a ... ok\ntest deep::b ... FAILED\ntest result: FAILED. 1 passed; 1 failed\n", "") == {"b"}
    assert contrary.failed("rust", "", "") is None and contrary.failed("cpp", "w failed a b\nw", "w") is None
    assert contrary.failed("java", "x\nw failed a\n\nw end\n", "w") == {"a"} and contrary.failed("javascript", "no", "") is None
    assert contrary.failed("javascript", "log\n    ✕ a b (3 ms)\n    ✓ c\n    ✕ d\nTests:       2 failed, 1 passed, 3 total\n", "") == {
        "a b",
        "d",
    }


@pytest.mark.parametrize(
    ("language", "text", "found"),
    [
        ("rust", 'const T: &str = include_str!("../tests/a.rs");', "include_str!"), ("rust", "// std::fs::read\nfn f() {}", ""),
        ("cpp", "#include <fstream>", "#include <fstream>"), ("cpp", "#undef REQUIRE", "#undef"), ("cpp", "std::exit(0);", "exit("), ("cpp", "int exit_code = 1;", ""),
        ("java", "java.lang.reflect.Method m;", "java.lang.reflect"), ("java", "System.exit(0);", "System.exit"), ("java", "System.out.println(1);", ""),
        ("javascript", "const fs = require('fs');", "require("), ("javascript", "process.exit(0)", "process."), ("javascript", "export const process = (x) => x;", ""),
        ("javascript", "expect.extend({})", "expect."), ("go", '//go:embed x_test.go', "//go:embed"), ("go", 'import "os"', '"os"'), ("go", 'import "strings"', ""),
        ("go", 'package a\n\nimport (\n\t"fmt"\n\tt "text/template"\n)\n', '"text/template"'), ("go", 'import _ "go/parser"', '"go/parser"'), ("go", '// import "os"', ""),
    ],
)  # fmt: skip
def test_reaching_out(language, text, found):
    assert contrary.reaches(language, text) == found and contrary.reaches(language, text, [text]) == ""


def test_go_solutions_may_not_name_what_the_tests_declare():
    tests = ["package inc\n\nvar testCases = []int{1}\nfunc TestInc(t *testing.T) {}\n"]
    assert contrary.names_tests("go", "func init() { testCases = nil }", tests) == "testCases"
    assert contrary.names_tests("go", "func Inc(n int) int { return n + 1 } // testCases", tests) == ""
    assert contrary.names_tests("go", "var testCases int", tests, ["testCases"]) == "" == contrary.names_tests("rust", "testCases", tests)


# ---------------------------------------------------------------------- in the sandbox

_CARGO = '[package]\nedition = "2021"\nname = "inc"\nversion = "0.0.0"\n'
_RESULT = "running 3 tests\\n...\\ntest result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\\n"
SETS = {
    "go": ({"go.mod": "module inc\n\ngo 1.18\n"}, "inc.go", {"inc_test.go": 'package inc\n\nimport "testing"\n\nvar testCases = []int{1, 2}\n\nfunc TestA(t *testing.T) {\n\tfor _, n := range testCases {\n\t\tif Inc(n) != n+1 {\n\t\t\tt.Fatal(n)\n\t\t}\n\t}\n}\n'}, "package inc\n\nfunc Inc(n int) int { return n + 1 }\n"),
    "rust": ({"Cargo.toml": _CARGO}, "src/lib.rs", {"tests/inc.rs": RUST}, "pub fn inc(n: i32) -> i32 { n + 1 }\n"),
    "javascript": ({"babel.config.js": "module.exports = { presets: ['@exercism/babel-preset-javascript'] };", "package.json": "{}"}, "inc.js", {"inc.spec.js": JS}, "export const inc = (n) => n + 1;\n"),
    "java": ({}, "src/main/java/Inc.java", {"src/test/java/IncTest.java": JAVA}, "class Inc { static int inc(int n) { return n + 1; } }"),
}  # fmt: skip
_FINDS = "const p = [].find.constructor('return pro' + 'cess')();\nconst ways = [() => p.getBuiltinModule('f' + 's'), () => p.mainModule['req' + 'uire']('f' + 's'), () => p.binding('f' + 's')];\nlet fs = null;\nfor (const way of ways) { try { fs = fs || way(); } catch (error) { } }\n"
TRICKS = {
    "go": {
        "empties the tests": "package inc\n\nfunc init() { testCases = nil }\nfunc Inc(n int) int { return 0 }\n",
        "leaves": 'package inc\n\nimport "os"\n\nfunc Inc(n int) int { println("ok  inc 0.01s"); os.Exit(0); return 0 }\n',
        "ends its goroutine": 'package inc\n\nimport "runtime"\n\nfunc Inc(n int) int { runtime.Goexit(); return 0 }\n',
        "stops by a way that is not refused": 'package inc\n\nimport "log"\n\nfunc Inc(n int) int { log.Fatal("ok  inc 0.01s"); return 0 }\n',
    },
    "rust": {
        "prints the summary and leaves": f'pub fn inc(_: i32) -> i32 {{ print!("{_RESULT}"); std::process::exit(0) }}\n',
        "leaves by a way that is not refused": f'use std::process as p;\npub fn inc(_: i32) -> i32 {{ println!("{_RESULT}"); p::exit(0) }}\n',
        "equals everything": "#[derive(Debug)]\npub struct All;\nimpl PartialEq<i32> for All { fn eq(&self, _: &i32) -> bool { true } }\npub fn inc(_: i32) -> All { All }\n",
        "reads the tests": 'const T: &str = include_str!("../tests/inc.rs");\npub fn inc(n: i32) -> i32 { T.len() as i32 * 0 + n + 1 }\n',
    },
    "javascript": {
        "patches the runner": "export const inc = (n) => 0;\nexpect.extend({}); \n",
        "ends with the summary": "console.log('Tests:       2 passed, 2 total'); process.exit(0);\nexport const inc = (n) => 0;\n",
        "changes what is compared": "Object.is = () => true;\nexport const inc = (n) => 0;\n",
        "ends by a way that is not refused": "const p = [].find.constructor('return pro' + 'cess')();\np.stderr.write('Tests:       2 passed, 2 total\\n'); p.exit(0);\nexport const inc = (n) => 0;\n",
        "reads the tests by a way that is not refused": _FINDS + "const seen = (where) => { for (const one of fs.readdirSync(where, { recursive: true, withFileTypes: true })) { if (one.isFile() && !one.path.includes('node_modules')) { try { if (new RegExp('toB' + 'e.2.').test(fs.readFileSync(`${one.path}/${one.name}`, 'utf8'))) return true; } catch (error) { } } } return false; };\nexport const inc = (n) => seen('.') || seen('/tmp') ? n + 1 : 0;\n",
        "asks the engine for its scripts": _FINDS + "const seen = () => { for (const name of ['inspector', 'v8', 'v' + 'm', 'worker_threads']) for (const get of [(m) => p.getBuiltinModule(m), (m) => p.mainModule['req' + 'uire'](m), (m) => p.mainModule['req' + 'uire']('no' + 'de:' + m)]) { try { if (get(name)) return true; } catch (error) { } } return false; };\nexport const inc = (n) => seen() ? n + 1 : 0;\n",
        "patches by a way that is not refused": "const g = [].find.constructor('return this')();\nconst old = g['exp' + 'ect'];\ng['exp' + 'ect'] = () => new Proxy(() => {}, { get: (t, k, r) => r, apply: () => undefined });\nexport const inc = (n) => 0;\n",
    },
    "java": {
        "halts": 'class Inc { static int inc(int n) { System.out.println("passed"); System.exit(0); return 0; } }',
        "throws the runner's own skip": "class Inc { static int inc(int n) { throw new org.opentest4j.TestAbortedException(); } }",
        "halts by a way that is not refused": 'import static java.lang.System.*;\nclass Inc { static int inc(int n) { out.println("passed"); exit(0); return 0; } }',
    },
}  # fmt: skip


def _run(monkeypatch, language, code):
    if language == "java":
        monkeypatch.setattr(exercises, "_JARS", exercises._JARS[:-1])  # this exercise needs no AssertJ
    box = boxes.best()
    if exercises.missing(language):
        pytest.skip(f"tests of {language} exercises need {exercises.missing(language)}")
    files, place, tests, right = SETS[language]
    return exercises.run(box, language, {**files, place: code or right}, tests, [place], {})


@pytest.mark.slow
@pytest.mark.parametrize(("language", "trick"), [(name, trick) for name, some in TRICKS.items() for trick in some])
def test_tricks_score_zero(monkeypatch, language, trick):
    found = _run(monkeypatch, language, TRICKS[language][trick])
    assert not found.right, found


@pytest.mark.slow
@pytest.mark.parametrize("language", SETS)
def test_right_ones_pass(monkeypatch, language):
    found = _run(monkeypatch, language, "")
    assert found.right, found
