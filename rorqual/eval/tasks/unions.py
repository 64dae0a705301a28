"""C++ results that are raw unions (HumanEval 103 and 125 in HumanEval-Mul), made to tell which member they hold. No torch.

A raw union does not say which of its members is alive, so its value cannot be shown. Both programs, the one of the calls and the one of the
values wanted, get a structure in its place, under its name: the same members and constructors, neither copied nor assigned, as such a union
cannot be, and a number for the constructor that made it. Problem 137 has a member of type `std::nullopt`, which is no type, and calls that fit
two constructors: it does not compile as published, so no answer to it can be right.
"""

from __future__ import annotations

import re

_UNION = re.compile(r"^union (\w+)\s*\{(.*?)^\};", re.MULTILINE | re.DOTALL)


def tagged(text: str) -> str:
    """`text` with every raw union of that form as a structure."""

    def structure(found: re.Match[str]) -> str:
        name, body = found[1], found[2]
        body = re.sub(r"(?<=[\w>] )(f\d+);", r"\1{};", body)
        body = re.sub(r": (f(\d+))\(_f\d+\) \{\}", r": \1(_\1), rorqual_which(\2) {}", body)
        own = f"int rorqual_which = -1;\n    {name}(const {name}&) = delete;\n    {name}& operator=(const {name}&) = delete;"
        return f"struct {name} {{\n    {own}{body}}};"

    return _UNION.sub(structure, text)


def showing(text: str) -> str:
    """What shows the unions of `text` (the problem's prompt), to stand behind `shown.CPP`; "" where there are none."""
    out = ""
    for name, body in _UNION.findall(text):
        cases = "".join(
            f'            case {number}: return "u{number}:" + Show<std::decay_t<decltype(v.f{number})>>::of(v.f{number});\n'
            for number in dict.fromkeys(re.findall(r"[\w>] f(\d+);", body))
        )
        out += (
            f"template <> struct Show<{name}> {{\n    static std::string of(const {name}& v) {{\n        switch (v.rorqual_which) {{\n{cases}"
            '            default: return "other";\n        }\n    }\n};\n'
        )
    return f"namespace rorqual_shown {{\n{out}}}\n" if out else ""
