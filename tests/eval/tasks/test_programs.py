"""Programs of languages whose tools may not be here, as text; what is run is tested with HumanEval."""

from __future__ import annotations

from rorqual.eval.tasks import programs


def test_a_whole_answer_keeps_what_stands_above_the_function():
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
