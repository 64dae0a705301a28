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
    "rust": r"#\[test\]\s*(?:(?:#\[[^\]]*\]|///[^\n]*)\s*)*fn (?P<name>\w+)\(\)",
    "go": r"^func (?P<name>Test\w+)\(\w+ \*testing\.T\)",
    "cpp": r'TEST_CASE\(\s*"(?P<name>(?:[^"\\]|\\.)*)"',
    "java": r"@Test\s+(?:@\w+(?:\([^)]*\))?\s+)*(?:public\s+)?void (?P<name>\w+)\(",
    "javascript": r"\bx?(?:test|it)\(\s*(?P<quote>['\"`])(?P<name>(?:(?!(?P=quote))[^\\]|\\.)*)(?P=quote),",
}
_TURNS = {
    "rust": (
        (r"\bassert_eq!\(", "assert_ne!("), (r"\bassert_ne!\(", "assert_eq!("), (r"\bassert!\((?=[^=<>|;]*\);)", "assert!(false == "),
    ),
    "cpp": (
        (r"\bREQUIRE\(", "REQUIRE_FALSE("), (r"\bREQUIRE_FALSE\(", "REQUIRE("), (r"\bCHECK\(", "CHECK_FALSE("),
        (r"\bREQUIRE_THAT\([^;]*?,\s*(?=Catch::)", r"\g<0>!"),
    ),
    "go": (  # an `if` whose block fails the test by a statement of its own
        (r"(?m)^(?P<tab>\t*)if (?P<before>[^{}\n;]*; ?)?(?P<test>[^{}\n;]+?) \{(?=\n(?:(?P=tab)\t.*\n|\n)*?(?P=tab)\tt\.(?:Error|Fatal|Fail))",
         r"\g<tab>if \g<before>!(\g<test>) {"),
    ),
    "java": (
        (r"\bassertEquals\(", "assertNotEquals("), (r"\bassertTrue\(", "assertFalse("), (r"\bassertFalse\(", "assertTrue("), (r"\.isEqualTo\((?![^;]*\bwithin\()", ".isNotEqualTo("),
        (r"\.isEqualTo\((?=[^;]*\bwithin\()", ".isNotCloseTo("),
        (r"\.isTrue\(\)", ".isFalse()"), (r"\.isFalse\(\)", ".isTrue()"), (r"\.isCloseTo\(", ".isNotCloseTo("), (r"\)\s*\.isEmpty\(\)(?=;)", ").isNotEmpty()"),
        (r"\.containsExactlyElementsOf\(", ".doesNotContainAnyElementsOf("), (r"\.contains(?:Exactly|Only)\(", ".doesNotContain("),
    ),
    "javascript": ((r"\)\.not\.to(?=[A-Z])", ").to"), (r"\)(?P<how>\s*\.resolves)?\.to(?=[A-Z])", r")\g<how>.not.to")),
}  # fmt: skip
_HELPERS = {  # functions of a test file that make assertions for several tests
    "rust": r"^fn (?P<name>\w+)\((?=\w)",
    "cpp": r"^(?:template\s*<[^>]*>\s*)?(?:static |inline )*void (?P<name>\w+)\((?=[^)])",
    "java": r"^ +(?:(?:private|public|static|final) )*void (?P<name>\w+)\((?=[^)])",
    "go": r"^func (?P<name>\w+)\(t \*testing\.T, ",
}
_REACHES = {
    "rust": r"\binclude(?:_str|_bytes)?!|\bfs::|\bprocess::|\benv::|\bnet::|\bunsafe\b|\basm!|\bextern\s+\"C|\bno_mangle\b|#!\[no_main|\bbuild\s*=|\bproc-macro\b",
    "cpp": r"#\s*include\s*<(?:fstream|filesystem|cstdlib|stdlib\.h|unistd\.h|fcntl\.h|csignal|signal\.h|dlfcn\.h|sys/\w+\.h)>"
    r"|#\s*(?:undef|pragma\s+(?:push|pop)_macro)|#\s*define\s+(?:REQUIRE|CHECK|TEST_CASE|SECTION|main)\b|\bcatch2?\.hpp\b|\bCatch\s*::|\basm\b|__asm|\bsyscall\b"
    r"|\b(?:quick_|_)?exit\s*\(|\b_Exit\s*\(|\babort\s*\(|\batexit\b|__attribute__|\[\[gnu::constructor|\bfopen\b|\bifstream\b|\bmmap\b",
    "go": r"//go:\w+",
    "java": r"\bjava\.(?:io\.(?:File|RandomAccess)|nio\.file|lang\.reflect|lang\.invoke|net)\b|\bRuntime\.getRuntime|\bProcessBuilder\b|\bSystem\s*\.\s*(?:exit|getenv|getProperty|setOut|setErr)\b"
    r"|\bClassLoader\b|\bClass\.forName|\bgetDeclared\w+\(|\bUnsafe\b|\bStackWalker\b|\borg\.(?:junit|assertj|opentest4j)\b|\bThread\.currentThread\(\)\.getStackTrace",
    "javascript": r"\brequire\s*\(|\bprocess\s*[.\[]|\bimport\s*\(|['\"`](?:node:|fs\b|vm['\"`]|child_process)|\bglobalThis\b|\bglobal\s*[.\[]|\beval\s*\(|\bnew\s+Function\b|\bFunction\s*\("
    r"|\bconstructor\s*(?:\.|\[['\"`])\s*constructor|\b(?:expect|jest|describe|beforeEach|afterEach|beforeAll|afterAll)\s*[.(=]|\bmodule\.paths\b|__filename|__dirname",
}  # fmt: skip
_GO_PURE = frozenset(
    "bufio bytes cmp container/heap container/list container/ring context encoding/csv encoding/hex encoding/json errors fmt hash/fnv io iter maps math math/big "
    "math/bits math/cmplx math/rand math/rand/v2 regexp slices sort strconv strings sync sync/atomic text/tabwriter time unicode unicode/utf16 unicode/utf8".split()
)  # fmt: skip
"""What of Go's library touches neither files nor the process: no other can be imported, since many can read files by some way."""
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
    bare = text if language == "go" else _COMMENTS.sub(" ", text)  # Go's directives are comments
    found = [one[0].strip() for one in re.finditer(_REACHES[language], bare)]
    if language == "go":
        code = _COMMENTS.sub(" ", text)
        groups = re.findall(r"^\s*import\s*\(([^)]*)\)", code, re.MULTILINE) + re.findall(r"^\s*import\s*([^(\n]+)$", code, re.MULTILINE)
        found += [f'"{name}"' for group in groups for name in re.findall(r'["`]([^"`]+)["`]', group) if name not in _GO_PURE]
    return found


def telling(language: str, text: str, word: str) -> str:
    """Go: the tests of a file, each saying on standard error behind `word` how it ended; other languages' runners say so themselves."""
    if language != "go":
        return text
    say = 'println("\\n%s %s %s")'
    return re.sub(
        r"^func (Test\w+)\((\w+) \*testing\.T\) \{",
        lambda one: (
            f"{one[0]}\n\tdefer func() {{\n\t\tif {one[2]}.Failed() {{\n\t\t\t{say % (word, 'failed', one[1])}\n\t\t}} else {{\n"
            f"\t\t\t{say % (word, 'passed', one[1])}\n\t\t}}\n\t}}()"
        ),
        text,
        flags=re.MULTILINE,
    )


def _helped(language: str, text: str) -> tuple[str, list[str]]:
    """The text with a turned copy, `turned_NAME`, behind every helper whose own assertion can be turned, and the helpers' names."""
    names: list[str] = []
    for _ in range(2):  # those that make assertions themselves, then those that call them
        known = list(names)
        for one in reversed(list(re.finditer(_HELPERS.get(language, r"(?!)"), text, re.MULTILINE))):
            start = text.find("{", one.end()) + 1
            if not start or one["name"].removeprefix("turned_") in names or "@Test" in text[max(0, one.start() - 40) : one.end()]:
                continue
            end = closing(text, start, language, "}") if language == "java" else text.find("\n}", start) + 1
            hits = _hits(language, text[start:end], known)
            if end <= start or not hits:
                continue
            first, new = min(hits, key=lambda hit: hit[0].start())
            head = text[one.start() : start].replace(one["name"], f"turned_{one['name']}", 1)
            copy = head + text[start : start + first.start()] + new + text[start + first.end() : end + 1]
            text = f"{text[: end + 1]}\n{copy}\n{text[end + 1 :]}"
            names.append(one["name"])
    return text, names


def _hits(language: str, body: str, helpers: Iterable[str]) -> list[tuple[re.Match[str], str]]:
    """The first place of each kind that can be turned in the body of a test, and what stands there then."""
    turns = [*_TURNS[language], *((rf"\b{name}(?=\s*[(<])", f"turned_{name}") for name in helpers)]
    return [(match, match.expand(new)) for old, new in turns if (match := re.search(old, body))]


def turned(language: str, tests: Mapping[str, str]) -> tuple[dict[str, str], set[str]]:
    """(the tests with some turned around, the names of those); no name where none can be turned."""
    names = set[str]()
    if language not in _TESTS:
        return dict(tests), names
    helped = {file: _helped(language, text) for file, text in tests.items()}
    out = {file: text for file, (text, _) in helped.items()}
    pieces = {file: _pieces(language, text, helpers) for file, (text, helpers) in helped.items()}
    every = [name for some in pieces.values() for name, *_ in some]
    able = [
        one
        for file, some in pieces.items()
        for one in ((file, *piece) for piece in some)
        if one[2] is not None and every.count(one[1]) == 1
    ]
    if not able:
        return dict(tests), names
    surely = secrets.randbelow(len(able))
    chosen = [one for number, one in enumerate(able) if number == surely or secrets.randbelow(2)]
    for file, name, place in sorted(chosen, key=lambda one: (one[0], -(one[2] or (0,))[0])):  # from the end, so that places stay
        assert place is not None
        start, end, text = place
        out[file] = out[file][:start] + text + out[file][end:]
        names.add(name)
    return out, names


def _pieces(language: str, text: str, helpers: Iterable[str] = ()) -> list[tuple[str, tuple[int, int, str] | None]]:
    """(name, (start, end, new text) of its first assertion, None if that cannot be turned) of every test of a file."""
    found = list(re.finditer(_TESTS[language], text, re.MULTILINE))
    out: list[tuple[str, tuple[int, int, str] | None]] = []
    for number, one in enumerate(found):
        end = found[number + 1].start() if number + 1 < len(found) else len(text)
        body = _body(language, text[one.end() : end])
        name = re.sub(r"\\(.)", r"\1", one["name"])
        hits = _hits(language, body, helpers)
        first = min(hits, key=lambda hit: hit[0].start(), default=None)
        if first is None or re.search(
            r"should_panic|#\[cfg\(|\bskip\b|\.each\b|@ParameterizedTest", text[max(0, one.start() - 60) : one.end()]
        ):
            out.append((name, None))
        else:
            out.append((name, (one.end() + first[0].start(), one.end() + first[0].end(), first[1])))
    return out


def _body(language: str, text: str) -> str:
    """Up to the end of the test's function: what helpers assert that stand behind it is not surely reached."""
    if language in ("rust", "go"):
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
    if language == "go":
        told = re.findall(rf"^{re.escape(mark)} (failed|passed) (\w+)$", output, re.MULTILINE)
        return {name for how, name in told if how == "failed"} if told else None
    if language in ("cpp", "java"):
        lines = [line.removeprefix(mark) for line in output.splitlines() if line.startswith(mark)]
        return {line.removeprefix(" failed ") for line in lines if line.startswith(" failed ")} if " end" in lines else None
    titles = re.findall(r"^\s+✕ (.*?)(?: \([\d.]+ m?s\))?$", output, re.MULTILINE)
    return set(titles) if re.search(r"^Tests: ", output, re.MULTILINE) else None
