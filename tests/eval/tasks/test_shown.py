"""Values as lines, in the languages found here: equal ones are equal lines, others are not."""

from __future__ import annotations

import pytest

from rorqual.eval.tasks import shown
from tests.eval import boxes


def test_statements():
    assert (
        shown.statement("cpp", 3, "(1)", "m", of="f(2)")
        == '    rorqual_shown::put("m", 3, static_cast<std::decay_t<decltype(f(2))>>((1)));'
    )
    assert shown.statement("java", 0, "f(2l)", "m") == '    RorqualShown.put("m", 0, f(2l));'
    assert shown.statement("php", 0, "f(2)", "m") == '    echo "\\nm 0 ", bin2hex(serialize(f(2))), "\\n";'
    assert shown.statement("sh", 0, 'candidate "1"', "m") == '    printf \'\\n%s %s %q\\n\' m 0 "$(candidate "1")"'


VALUES = {
    "cs": (["1L", "-0.0f", "1.5", '"\\u00e9"', "new List<object> { 1, true }", "(long?)null", "new Dictionary<string, long> { { \"b\", 1 }, { \"a\", 2 } }", "Tuple.Create(1L, \"\")", "new object()"],
           ["n1", "f0", "f1.5", "sc3a9", "[n1,true]", "null", "{s61:n2,s62:n1}", "[n1,s]", "other"]),
    "php": (["1", "1.0", "array('a' => true)"], ["693a313b", "643a313b", "613a313a7b733a313a2261223b623a313b7d"]),
    "js": (["[1, -0, 1.5]", "undefined", "null", '"a\\n"', "{b: [true]}", "new Date(0)", "NaN"],
           ['{"a":[1,{"n":"0"},1.5]}', '{"u":1}', "null", '"a\\n"', '{"o":[["b",{"a":[true]}]]}', '{"x":1}', '{"n":"NaN"}']),
    "sh": (['echo "a b"', "printf 'x\\ny'", "true"], ["a\\ b", "$'x\\ny'", "''"]),
    "java": (["1l", "-0.0f", "1.5", '"\\u00e9"', "java.util.Arrays.asList(1, true)", "java.util.Optional.empty()", "java.util.Map.of(\"b\", 1l, \"a\", 2l)", "new Object()"],
             ["n1", "f0.0", "f1.5", "sc3a9", "[n1,true]", "null", "{s61:n2,s62:n1}", "other"]),
    "cpp": (["1", "-0.0f", "1.5", 'std::string("\\xc3\\xa9")', "std::vector<bool>{true}", "std::optional<long>()", "std::make_tuple(1l, std::string())", "std::map<std::string, long>{{\"a\", 2}}"],
            ["n1", "f0x0p+0", "f0x1.8p+0", "sc3a9", "[true]", "null", "[n1,s]", "{s61:n2}"]),
}  # fmt: skip


@pytest.mark.parametrize("language", [pytest.param(name, marks=pytest.mark.slow if name not in ("js", "sh") else ()) for name in VALUES])
def test_values(language):
    box = boxes.best()
    if language not in box.describe()["languages"]:
        pytest.skip(f"no tools for {language}")
    values, lines = VALUES[language]
    body = "\n".join(shown.statement(language, number, value, "m") for number, value in enumerate(values))
    source = {
        "js": f"{shown.JS}\n{body}\n", "sh": body, "java": f"class Main {{ public static void main(String[] a) {{\n{body}\n}} }}\n{shown.JAVA}",
        "php": f"<?php\n{body}\n", "cs": f"using System;\nusing System.Collections.Generic;\nclass Main {{ public static void X() {{\n{body}\n}} }}\n{shown.CS}".replace("class Main ", "class P ").replace("X()", "Main()"),
        "cpp": f"{shown.CPP}\nint main() {{\n{body}\n}}\n",
    }[language]  # fmt: skip
    done = box.run(source, language=language, seconds=30)
    assert [line.split(" ", 2)[2] for line in done.stdout.splitlines() if line.startswith("m ")] == lines, done.stderr
