"""Programs of languages whose tools may not be here, as text; what is run is tested with HumanEval."""

from __future__ import annotations

from rorqual.eval.tasks import programs


def test_c_sharp_checks_by_itself_and_says_the_word_last():
    """Debug.Assert does nothing in a release build."""
    tests = "    }\n    public static void Main(string[] args) {\n    Debug.Assert(Twice((2L)) == (4L));\n    }\n\n}\n"
    made = programs.program("class Problem {\n    public static long Twice(long x) {\n        return 2 * x;\n", tests, "cs", "end-1")
    assert made == (
        "class Problem {\n    public static long Twice(long x) {\n        return 2 * x;\n\n    }\n    public static void Main(string[] args) {\n"
        '    Held(Twice((2L)) == (4L));\n        Console.WriteLine("\\nend-1");\n    }\n'
        "    static void Held(bool held) { if (!held) Environment.Exit(1); }\n}\n"
    )


def test_php_and_typescript():
    assert programs.program("<?php\nfunction f($x) {\n  return 1;\n}", "test();", "php", "w").endswith('test();\necho "\\nw\\n";\n')
    assert programs.program("function f() {}", "test();", "ts", "w") == 'function f() {}\ntest();\nconsole.log("\\nw");\n'
    whole = programs.joined("<?php\n// Twice\nfunction f($x) {\n", "<?php\nfunction f($x) { return 2 * $x; }", True, "php")
    assert whole == "<?php\nfunction f($x) { return 2 * $x; }\n"


def test_blocks_lose_the_braces_that_the_tests_bring():
    prompt = "using System;\nclass Problem {\n    public static long F(long x) {\n"
    assert (
        programs.joined(prompt, "public static long F(long x) { return x; }", True, "cs")
        == "using System;\nclass Problem {\npublic static long F(long x) { return x; "
    )
    block = "using System;\npublic class Problem {\n    public static long F(long x) { return x; }\n    public static void Main(string[] a) { F(1); }\n}"
    assert programs.joined(prompt, block, True, "cs").rstrip().endswith("public static long F(long x) { return x;")
    assert programs.joined("int f() {\n", "  return 1;", False, "cpp") == "int f() {\n  return 1;"
