"""Keeps a candidate honest whose tests must run in his own process: a second run, in which some of the tests are turned around. No torch.

Of the tests whose first assertion can be turned (equal to unequal, true to false) about half are, by chance. A right solution passes all tests,
and in the second run fails the turned ones and no other. Code that prints the runner's words, leaves early, empties the assertions or patches
the runner cannot tell a turned test from another without having the right answer itself. `reaches` refuses code that names what only serves
to read the tests, the process or the machine: nothing of that is needed in an exercise that asks for the standard library alone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping

from rorqual.eval.tasks.parted import closing

_TESTS = {
    "rust": r"#\[test\]\s*(?:#\[ignore[^\]]*\]\s*)?fn (?P<name>\w+)\(\)",
    "cpp": r'TEST_CASE\(\s*"(?P<name>(?:[^"\\]|\\.)*)"',
    "java": r"@Test\s+(?:@\w+(?:\([^)]*\))?\s+)*(?:public\s+)?void (?P<name>\w+)\(",
    "javascript": r"\bx?(?:test|it)\(\s*(?P<quote>['\"`])(?P<name>(?:(?!(?P=quote))[^\\]|\\.)*)(?P=quote),",
}
_TURNS = {
    "rust": ((r"\bassert_eq!\(", "assert_ne!("), (r"\bassert_ne!\(", "assert_eq!(")),
    "cpp": ((r"\bREQUIRE\(", "REQUIRE_FALSE("), (r"\bREQUIRE_FALSE\(", "REQUIRE("), (r"\bCHECK\(", "CHECK_FALSE(")),
    "java": (
        (r"\bassertEquals\(", "assertNotEquals("), (r"\bassertTrue\(", "assertFalse("), (r"\bassertFalse\(", "assertTrue("), (r"\.isEqualTo\(", ".isNotEqualTo("),
        (r"\.isTrue\(\)", ".isFalse()"), (r"\.isFalse\(\)", ".isTrue()"),
    ),
    "javascript": ((r"\)\.not\.to(?=[A-Z])", ").to"), (r"\)\.to(?=[A-Z])", ").not.to")),
}  # fmt: skip
_REACHES = {
    "rust": r"\binclude(?:_str|_bytes)?!|\bfs::|\bprocess::|\benv::|\bnet::|\bunsafe\b|\basm!|\bextern\s+\"C|\bno_mangle\b|#!\[no_main|\bbuild\s*=|\bproc-macro\b",
    "cpp": r"#\s*include\s*<(?:fstream|filesystem|cstdlib|stdlib\.h|unistd\.h|fcntl\.h|csignal|signal\.h|dlfcn\.h|sys/\w+\.h)>"
    r"|#\s*(?:undef|pragma\s+(?:push|pop)_macro)|#\s*define\s+(?:REQUIRE|CHECK|TEST_CASE|SECTION|main)\b|\bcatch2?\.hpp\b|\bCatch\s*::|\basm\b|__asm|\bsyscall\b"
    r"|\b(?:quick_|_)?exit\s*\(|\b_Exit\s*\(|\babort\s*\(|\batexit\b|__attribute__|\[\[gnu::constructor|\bfopen\b|\bifstream\b|\bmmap\b",
    "go": r'"(?:os|syscall|unsafe|reflect|runtime|plugin|io/ioutil|embed|testing|net|os/\w+)"|//go:(?:embed|linkname)|import\s+"C"',
    "java": r"\bjava\.(?:io\.(?:File|RandomAccess)|nio\.file|lang\.reflect|lang\.invoke|net)\b|\bRuntime\.getRuntime|\bProcessBuilder\b|\bSystem\s*\.\s*(?:exit|getenv|getProperty|setOut|setErr)\b"
    r"|\bClassLoader\b|\bClass\.forName|\bgetDeclared\w+\(|\bUnsafe\b|\bStackWalker\b|\borg\.(?:junit|assertj|opentest4j)\b|\bThread\.currentThread\(\)\.getStackTrace",
    "javascript": r"\brequire\s*\(|\bprocess\s*[.\[]|\bimport\s*\(|['\"`](?:node:|fs\b|vm['\"`]|child_process)|\bglobalThis\b|\bglobal\s*[.\[]|\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\("
    r"|\bconstructor\s*(?:\.|\[['\"`])\s*constructor|\b(?:expect|jest|describe|beforeEach|afterEach|beforeAll|afterAll)\s*[.(=]|\bmodule\.paths\b|__filename|__dirname",
}  # fmt: skip
_COMMENTS = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def reaches(language: str, text: str, own: Iterable[str] = ()) -> str:
    """The first thing in a solution that reaches out of it, "" if nothing does; comments are left out.

    What stands in the texts `own`, the exercise's stub and example, is allowed there.
    """
    allowed = {found for one in own for found in _all(language, one)}
    return next((one for one in _all(language, text) if one not in allowed), "")


def names_tests(language: str, text: str, tests: Iterable[str], own: Iterable[str] = ()) -> str:
    """Go, where tests are of the solution's package: the first name of theirs that a solution uses, "" if none; what `own` texts use is allowed."""
    if language != "go":
        return ""
    declared = set[str]()
    for one in tests:
        declared |= set(re.findall(r"^(?:var|func|const|type)\s+(\w+)", one, re.MULTILINE))
        for group in re.findall(r"^(?:var|const|type)\s*\((.*?)^\)", one, re.MULTILINE | re.DOTALL):
            declared |= set(re.findall(r"^\t(\w+)", group, re.MULTILINE))
    declared.discard("_")
    allowed = {word for one in own for word in re.findall(r"\w+", one)}
    return next((word for word in re.findall(r"(?<!\.)\b\w+", _COMMENTS.sub(" ", text)) if word in declared and word not in allowed), "")


def _all(language: str, text: str) -> list[str]:
    if language not in _REACHES:
        return []
    bare = text if language == "go" else _COMMENTS.sub(" ", text)  # Go's embed and linkname are comments
    return [one[0].strip() for one in re.finditer(_REACHES[language], bare)]


def turned(language: str, tests: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """(the tests with some turned around, the names of those); no name where none can be turned."""
    out, names = dict(tests), set[str]()
    if language not in _TESTS:
        return out, names
    pieces = {file: _pieces(language, text) for file, text in tests.items()}
    every = [name for some in pieces.values() for name, *_ in some]
    able = [
        one
        for file, some in pieces.items()
        for one in ((file, *piece) for piece in some)
        if one[2] is not None and every.count(one[1]) == 1
    ]
    if not able:
        return out, names
    surely = secrets.randbelow(len(able))
    chosen = [one for number, one in enumerate(able) if number == surely or secrets.randbelow(2)]
    for file, name, place in sorted(chosen, key=lambda one: (one[0], -(one[2] or (0,))[0])):  # from the end, so that places stay
        assert place is not None
        start, end, text = place
        out[file] = out[file][:start] + text + out[file][end:]
        names.add(name)
    return out, names


def _pieces(language: str, text: str) -> list[tuple[str, tuple[int, int, str] | None]]:
    """(name, (start, end, new text) of its first assertion, None if that cannot be turned) of every test of a file."""
    found = list(re.finditer(_TESTS[language], text))
    out: list[tuple[str, tuple[int, int, str] | None]] = []
    for number, one in enumerate(found):
        end = found[number + 1].start() if number + 1 < len(found) else len(text)
        body = _body(language, text[one.end() : end])
        name = re.sub(r"\\(.)", r"\1", one["name"])
        hits = [(match, new) for old, new in _TURNS[language] if (match := re.search(old, body))]
        first = min(hits, key=lambda hit: hit[0].start(), default=None)
        if first is None or re.search(r"should_panic|\bskip\b|\.each\b|@ParameterizedTest", text[max(0, one.start() - 60) : one.end()]):
            out.append((name, None))
        else:
            out.append((name, (one.end() + first[0].start(), one.end() + first[0].end(), first[1])))
    return out


def _body(language: str, text: str) -> str:
    """Up to the end of the test's function: what helpers assert that stand behind it is not surely reached."""
    if language == "rust":
        return text.partition("\n}")[0]
    if language in ("cpp", "java"):
        start = text.find("{") + 1
        end = closing(text, start, language, "}")
        return text[:end] if start and end >= 0 else text
    return text


def failed(language: str, output: str, mark: str) -> set[str] | None:
    """Names of the tests that a run says have failed; None where it does not say how it went."""
    if language == "rust":
        return set(re.findall(r"^test (?:\w+::)*(\w+) \.\.\. FAILED$", output, re.MULTILINE)) if "test result: " in output else None
    if language in ("cpp", "java"):
        lines = [line.removeprefix(mark) for line in output.splitlines() if line.startswith(mark)]
        return {line.removeprefix(" failed ") for line in lines if line.startswith(" failed ")} if " end" in lines else None
    titles = re.findall(r"^\s+✕ (.*?)(?: \([\d.]+ m?s\))?$", output, re.MULTILINE)
    return set(titles) if re.search(r"^Tests: ", output, re.MULTILINE) else None
