"""Raw unions of HumanEval-Mul's C++ tell what they hold; right answers pass, and code that hunts for the values fails."""

from __future__ import annotations

import json

import pytest

from rorqual.eval.task import Tools
from rorqual.eval.tasks import humaneval, unions
from tests.eval import boxes, small

PROMPT = """#include<bits/stdc++.h>
union U{
    std::string f0;
    long f1;    U(std::string _f0) : f0(_f0) {}
    U(long _f1) : f1(_f1) {}
    ~U() {}
    bool operator==(std::string f) {
        return f0 == f ;
    }    bool operator==(long f) {
        return f1 == f ;
    }
};
U twice(long n) {
"""
TESTS = '}\nint main() {\n    auto candidate = twice;\n    assert(candidate((2)) == "4");\n    assert(candidate((-1)) == -1);\n}\n'


def test_a_union_becomes_a_structure_that_says_which():
    made = unions.tagged(PROMPT)
    assert "union" not in made and "struct U {\n    int rorqual_which = -1;\n    U(const U&) = delete;" in made
    assert "std::string f0{};" in made and "long f1{};" in made and "U(long _f1) : f1(_f1), rorqual_which(1) {}" in made
    assert made.endswith("U twice(long n) {\n") and unions.tagged("long f() {\n") == "long f() {\n"
    shown = unions.showing(PROMPT)
    assert 'case 1: return "u1:" + Show<std::decay_t<decltype(v.f1)>>::of(v.f1);' in shown and unions.showing("long f() {") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "score"),
    [
        ("    if (n < 0) return U(-1);\n    return U(std::to_string(2 * n));", 1.0),
        ("    return U(std::to_string(2 * n));", 0.0),
        ("    if (n < 0) return U(std::string(\"-1\"));\n    return U(std::to_string(2 * n));", 0.0),
        ("    U made(-1);\n    return made;", 0.0),  # a union with such a member cannot be copied
        ('    std::ifstream file("main.cpp"); std::cout << file.rdbuf() << std::endl; exit(0);', 0.0),
        ("    return U(4);\n}\nbool operator==(U&&, const char*) { return true; }\nvoid x() {", 0.0),
    ],
)  # fmt: skip
def test_answers_and_cheats(body, score):
    tools = Tools(20)
    tools._sandbox = boxes.best()
    if "cpp" not in tools.sandbox.describe()["languages"]:
        pytest.skip("no tools for cpp")
    assert humaneval.judge({"prompt": PROMPT, "test": TESTS}, body, tools, "cpp").score == score


RIGHT = {
    103: '    if (n > m) return Union_std_string_long(-1);\n    long x = std::lrint((n + m) / 2.0);\n    std::string s;\n    for (; x; x /= 2) s = char(48 + x % 2) + s;\n    return Union_std_string_long("0b" + s);',  # noqa: E501
    125: '    typedef Union_std_vector_std_string__long U;\n    auto cut = [&](char c) { std::vector<std::string> v; std::string one; std::stringstream in(txt); while (std::getline(in, one, c)) v.push_back(one); return v; };\n    if (txt.find(\' \') != std::string::npos) return U(cut(\' \'));\n    if (txt.find(\',\') != std::string::npos) return U(cut(\',\'));\n    long k = 0;\n    for (char c : txt) k += c >= 97 && c <= 122 && (c - 97) % 2;\n    return U(k);',  # noqa: E501
}  # fmt: skip


@pytest.mark.slow
@small.needs_data
def test_the_published_problems():
    rows = [json.loads(line) for line in (small.DATA / "humaneval_mul" / "humaneval-cpp.jsonl").read_text().splitlines()]
    found = {int(row["task_id"].split("_")[1]): row for row in rows if "union " in row["prompt"]}
    assert sorted(found) == [103, 125, 137]
    tools = Tools(20)
    tools._sandbox = boxes.best()
    for number, body in RIGHT.items():
        said = humaneval.judge(found[number], body, tools, "cpp")
        assert said.score == 1.0, said.note
        assert humaneval.judge(found[number], body.replace("return", "if (0) return", 1), tools, "cpp").score == 0.0
    broken = humaneval.judge(found[137], "    return Union_long_float_std_string_std_nullopt(std::string());", tools, "cpp")
    assert broken.score == 0.0
