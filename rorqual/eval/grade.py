"""Whether code passes its tests, decided outside the process that runs the code. No torch.

    grade(box, code, tests, entry="add")          # Python: assertions, or functions that make them
    grade_unittest(box, files, tests, modules)    # Python: unittest modules over modules of the candidate's
    grade_output(box, code, cases)                # any language: standard input and the output wanted

Python's tests run in one box and the candidate in another; calls and plain values cross between them (isolation/link.py). So a candidate that
prints "passed", exits 0, rewrites tests, patches assertions, reads frames or files, or forks away, gains nothing: the expected values and the
comparison are not where he is. Other languages: tasks/parted.py and tasks/exercises.py.
"""

from __future__ import annotations

import ast
import builtins
import functools
import json
import py_compile
import secrets
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rorqual.eval.sandbox import Result, Sandbox

_HERE = Path(__file__).parent / "isolation"
_SERVE = "import sys; sys.path.insert(0, '.'); from rorqual.eval.isolation.link import serve_candidate; serve_candidate()"
_TEST = "import sys; sys.path.insert(0, '.'); from rorqual.eval.isolation.tested import main; main()"


@dataclass(frozen=True)
class Grade:
    """`passed` of `total` tests; `note` says why not all of them (a model may see it), `limit` which limit was broken, "" for none."""

    passed: int
    total: int
    note: str = ""
    limit: str = ""

    @property
    def right(self) -> bool:
        """Whether every test passed."""
        return self.passed == self.total


def grade(
    box: Sandbox, code: str, tests: str, *, entry: str = "", context: str = "", seconds: float | None = None, memory: int | None = None
) -> Grade:
    """Runs `tests`, Python text, against the module `code`. All or nothing: the first failing assertion ends it.

    Names in the tests that they do not define are taken from `context` (code that came with the task, such as HumanEval's prompt with its
    helper functions), from Python and its standard library, and only then from the candidate; `entry` is always the candidate's.
    """
    given = {"tests": tests, "context": context, "entry": entry}
    return _apart(box, "assertions", given, {"candidate.py": code}, {}, seconds, memory)


def grade_unittest(
    box: Sandbox, files: Mapping[str, str | bytes], tests: Mapping[str, str | bytes], modules: Iterable[str], *, seconds: float | None = None,
    memory: int | None = None, together: bool = False,
) -> Grade:  # fmt: skip
    """Runs unittest's cases of the `tests` files (those named *_test.py) against `modules`, which lie in `files`.

    No test file reaches the candidate's box. `together` puts all in one box, for tests that reach into the candidate's frames: weaker.
    """
    names = [Path(name).stem for name in tests if name.endswith("_test.py")]
    if together:
        word, own = secret_word(), _support(box.interpreter.command[0])
        given = json.dumps({"tests": names, "word": word})
        done = box.run([*box.interpreter.command, "-c", _TEST, "together"], {**tests, **files, **own}, given, seconds, memory)
        return _verdict(done, "", word)
    return _apart(box, "unittest", {"tests": names, "modules": list(modules)}, files, tests, seconds, memory)


def grade_output(
    box: Sandbox, code: str, cases: Sequence[tuple[str, str]], *, language: str = "python", seconds: float | None = None, memory: int | None = None
) -> Grade:  # fmt: skip
    """Runs a program once for each (standard input, wanted output); all of the output must be equal, spaces at line ends aside."""
    passed, note = 0, ""
    for number, (given, wanted) in enumerate(cases):
        done = box.run(code, stdin=given, seconds=seconds, memory=memory, language=language)
        if done.returncode == 0 and not done.limit and _lines(done.stdout) == _lines(wanted):
            passed += 1
            continue
        note = f"test {number}: {why(done) or 'wrong output'}"
        return Grade(passed, len(cases), note, done.limit)
    return Grade(passed, max(1, len(cases)), note)


def entry_of(reference: str, tests: str) -> str:
    """The function of the reference solution that the tests call, where its name is one of Python's own (MBPP 126 is `sum`); else ""."""
    try:
        defined = {node.name for node in ast.parse(reference).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        used = {node.id for node in ast.walk(ast.parse(tests)) if isinstance(node, ast.Name)}
    except SyntaxError:
        return ""
    return min(defined & used & set(dir(builtins)), default="")


def secret_word() -> str:
    """A word that no program can know beforehand."""
    return "end-" + secrets.token_hex(16)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def why(done: Result) -> str:
    """In a few words why a program failed, "" where it ended well."""
    if done.limit:
        return f"limit of {done.limit} passed"
    last = done.stderr.strip().rpartition("\n")[2]
    return last[:500] or (f"exit status {done.returncode}" if done.returncode else "")


def _apart(
    box: Sandbox, kind: str, given: Mapping[str, object], files: Mapping[str, str | bytes], tests: Mapping[str, str | bytes], seconds: float | None,
    memory: int | None,
) -> Grade:  # fmt: skip
    word = secret_word()
    python = list(box.interpreter.command)
    own = _support(box.interpreter.command[0])
    tester = box.program([*python, "-c", _TEST, kind], {**tests, **own}, json.dumps({**given, "word": word}), seconds, memory)
    candidate = box.program([*python, "-c", _SERVE], {**files, **own}, "", seconds, memory)
    found, other = box.run_programs([tester, candidate])
    return _verdict(found, other.limit, word)


def _verdict(found: Result, other_limit: str, word: str) -> Grade:
    limit = found.limit or other_limit
    said = found.stdout.rstrip("\n").rpartition("\n")[2]
    if limit or not said.startswith(word + " "):
        return Grade(0, 1, f"limit of {limit} passed" if limit else why(found) or "the tests did not reach their end", limit)
    verdict = json.loads(said.removeprefix(word))
    return Grade(verdict["passed"], verdict["total"], verdict["note"])


@functools.cache
def _support(interpreter: str) -> dict[str, bytes]:
    """The files that run in boxes, compiled where the boxes' Python is this one: that saves compiling them in every run."""
    base = "rorqual/eval/isolation"
    ours = str(getattr(sys, "_base_executable", "") or sys.executable)
    same = Path(interpreter).resolve() == Path(ours).resolve()
    out = {"rorqual/__init__.py": b"", "rorqual/eval/__init__.py": b"", f"{base}/__init__.py": b""}
    for name in ("link", "remote", "tested"):
        source = _HERE / f"{name}.py"
        if not same:
            out[f"{base}/{name}.py"] = source.read_bytes()
            continue
        with tempfile.TemporaryDirectory() as folder:
            py_compile.compile(str(source), f"{folder}/x.pyc", dfile=f"{base}/{name}.py", doraise=True)
            out[f"{base}/{name}.pyc"] = Path(folder, "x.pyc").read_bytes()
    return out
