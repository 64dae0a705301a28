"""How the tests of an Exercism exercise are run in the sandbox, by language, with the tools that the machine has; never the network. No torch.

    python        unittest apart from the candidate (rorqual/eval/grade.py)
    cpp           g++ with Catch: `catch.hpp` beside the data file
    rust          cargo test --include-ignored, offline
    go            go test
    java          javac and JUnit, with jars of JUnit 5 and AssertJ from ~/.m2, ~/.gradle or Debian's packages
    javascript    jest with Babel, beside node or in the node_modules folder that RORQUAL_NODE_MODULES names

In all but Python tests and candidate are one program. So what passes is run again with some tests turned around (tasks/contrary.py), code that
reaches for files, the process or the test runner is refused, and no file of the tests is left when the candidate starts: C++, Java, Go and
Rust are compiled before, jest reads through a reader that removes them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from rorqual.errors import DeviceError
from rorqual.eval import grade
from rorqual.eval.grade import Grade
from rorqual.eval.isolation import languages
from rorqual.eval.sandbox import Result, Sandbox
from rorqual.eval.tasks import contrary

LANGUAGES = ("python", "cpp", "go", "java", "javascript", "rust")
SECONDS = 180.0
_NAMES = {"javascript": "js"}
_NODE_MODULES = ("/usr/local/lib/node_modules", "/usr/lib/node_modules")
_XTEST = re.compile(r"\bx(?=(?:test|it)\()")
_CATCH_MAIN = """#define CATCH_CONFIG_RUNNER
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#include "catch.hpp"
#include <cstdio>
struct Told : Catch::TestEventListenerBase {{
    using TestEventListenerBase::TestEventListenerBase;
    void testCaseEnded(Catch::TestCaseStats const& one) override {{
        if (!one.totals.assertions.allPassed()) std::printf("\\n{word} failed %s\\n", one.testInfo.name.c_str());
    }}
}};
CATCH_REGISTER_LISTENER(Told)
int main(int count, char* words[]) {{
    int failed = Catch::Session().run(count, words);
    std::printf("\\n{word} end\\n");
    return failed;
}}
"""
_JUNIT_MAIN = """
import org.junit.platform.engine.discovery.DiscoverySelectors;
import org.junit.platform.launcher.core.*;
import org.junit.platform.launcher.listeners.*;
public class Started {{
    public static void main(String[] names) {{
        var request = LauncherDiscoveryRequestBuilder.request();
        for (String name : names) request.selectors(DiscoverySelectors.selectClass(name));
        var listener = new SummaryGeneratingListener();
        LauncherFactory.create().execute(request.build(), listener);
        var found = listener.getSummary();
        found.printFailuresTo(new java.io.PrintWriter(System.out, true));
        for (var one : found.getFailures()) System.out.println("\\n{word} failed " + one.getTestIdentifier().getDisplayName().replace("()", ""));
        long ended = found.getTestsFailedCount() + found.getTestsSucceededCount();
        if (found.getTestsFoundCount() > 0 && ended == found.getTestsFoundCount()) System.out.println("\\n{word} end");
        System.exit(found.getTotalFailureCount() == 0 ? 0 : 1);
    }}
}}
"""
_READ_ONCE = r"""
const fs = require("fs"), path = require("path"), Module = require("module");
const babel = require("babel-jest").default.createTransformer();
const hidden = ["inspector", "inspector/promises", "v8", "repl", "worker_threads", "vm", "child_process"];
let allowed = "";
const load = Module._load, builtin = process.getBuiltinModule;
const check = (name) => {
  const plain = String(name).replace(/^node:/, "");
  if (hidden.includes(plain) && !new RegExp(`['"](?:node:)?${plain}['"]`).test(allowed)) throw new Error(`${plain} cannot be loaded here`);
};
if (builtin) process.getBuiltinModule = (name) => { check(name); return builtin.call(process, name); };
const hide = () => {
  fs.rmSync(path.join(__dirname, ".read"), { recursive: true, force: true });
  Module._load = function (name, ...rest) { check(name); return load.call(this, name, ...rest); };
};
module.exports = {
  process(text, file, options) {
    const made = babel.process(text, file, options);
    if (/\.spec\.[jt]sx?$/.test(file)) {
      allowed += text;
      fs.rmSync(file);
    } else hide();
    return made;
  },
};
"""
"""Reads for jest: a file of tests is gone once it is read, and what was kept of it is gone before the first line of the solution runs."""
_JARS = (
    "junit-jupiter-api",
    "junit-jupiter-engine",
    "junit-platform-launcher",
    "junit-platform-engine",
    "junit-platform-commons",
    "opentest4j",
    "assertj-core",
)


def missing(language: str) -> str:
    """What the machine lacks to run the tests of a language, "" if nothing."""
    known = languages.LANGUAGES[_NAMES.get(language, language)]
    tools = [*known.tools, *(["cargo"] if language == "rust" else [])]
    absent = [tool for tool in tools if languages.found(tool) is None]
    if language == "javascript" and _jest() is None:
        absent.append("jest")
    if language == "java":
        absent += [f"{name}.jar in ~/.m2" for name in _JARS if not _jar(name)]
    return ", ".join(absent)


def run(
    box: Sandbox, language: str, files: Mapping[str, str], tests: Mapping[str, str], solution: list[str], extra: Mapping[str, str],
    own: Iterable[str] = (),
) -> Grade:  # fmt: skip
    """Runs the `tests` files of an exercise against `files`; `extra` are texts that the language needs ("catch.hpp").

    Any file of the tests' name in `files` is replaced by the test. `own` are texts of the exercise itself (stub, example): what they reach for
    a solution may, too. DeviceError where the tools are absent.
    """
    absent = missing(language)
    if absent:
        raise DeviceError(f"tests of {language} exercises need {absent}; install it, or leave polyglot_{language} out")
    if language == "python":
        return _python(box, files, tests, solution)
    for name in solution:
        text = files.get(name, "")
        out = contrary.reaches(language, text, own) or contrary.names_tests(language, text, tests.values(), own)
        if out:
            return Grade(0, 1, f"{name} names {out!r}, which reaches out of the exercise; the standard library's pure parts are enough")
    own = list(own)
    done, word = _run(box, language, files, tests, extra, own)
    text = (done.stdout.replace(word, "") + done.stderr).strip()[-8000:]
    silent = language in ("cpp", "java", "go")
    said = contrary.failed(language, f"{done.stdout}\n{done.stderr}", word) == set() if silent else _counted(language, text)
    if language == "go" and not any(re.search(r"^func Test", one, re.MULTILINE) for one in tests.values()):
        said = True  # `counter` leaves its tests to the solver: that it compiles is all there is
    if done.returncode or done.limit or not said:
        return Grade(0, 1, f"limit of {done.limit} passed" if done.limit else text or "the tests did not reach their end", done.limit)
    other, names = contrary.turned(language, tests)
    if names:
        done, word = _run(box, language, files, other, extra, own, names=True)
        if contrary.failed(language, f"{done.stdout}\n{done.stderr}", word) != names:
            return Grade(0, 1, "it passes tests that were turned around, or does not end them", done.limit)
    return Grade(1, 1)


def _run(
    box: Sandbox, language: str, files: Mapping[str, str], tests: Mapping[str, str], extra: Mapping[str, str], own: Iterable[str],
    names: bool = False,
) -> tuple[Result, str]:  # fmt: skip
    """One run, and the word made for it; with `names` the runner says which tests failed."""
    word = grade.secret_word()
    whole = {**files, **tests}
    made: dict[str, str | bytes] = dict(whole)
    match language:
        case "cpp":
            made |= {"test/catch.hpp": extra["catch.hpp"], "test/tests-main.cpp": _CATCH_MAIN.format(word=word)}
            sources = " ".join(shlex.quote(name) for name in whole if name.endswith(".cpp") and "/" not in name)
            build = f"g++ -std=c++17 -O0 -pthread -DEXERCISM_RUN_ALL_TESTS -I. -o started {sources} test/tests-main.cpp"
            script = f"{build} && rm -rf test *.cpp && exec ./started"
        case "rust":
            build = "cargo test --offline --quiet --no-run --test '*' && rm -f tests/*.rs"
            started = "$(find target/debug/deps -maxdepth 1 -type f -perm -u+x ! -name '*.*')"
            script = f"{build} && for one in {started}; do ./$one --include-ignored{'' if names else ' --quiet'} || failed=1; done; exit ${{failed:-0}}"
        case "go":
            made = {name: contrary.telling(language, text, word) if name in tests else text for name, text in whole.items()}
            build = "mkdir .own && export TMPDIR=$PWD/.own GOCACHE=$PWD/.own GOFLAGS=-mod=mod GOPROXY=off && go test -c -o started ."
            script = f"{build} && rm -rf .own *.go && exec ./started"
        case "java":
            classes = " ".join(Path(name).stem for name in tests if name.endswith("Test.java"))
            made = {name: re.sub(r"@Disabled\([^)]*\)\s*\n", "", text) if name in tests else text for name, text in whole.items()}
            made |= {f"jars/{name}.jar": Path(_jar(name)).read_bytes() for name in _JARS} | {"Started.java": _JUNIT_MAIN.format(word=word)}
            compile_ = "javac -J-XX:+UseSerialGC -cp 'jars/*' -d out $(find src -name '*.java') Started.java"
            script = f"{compile_} && rm -rf src Started.java && exec java -XX:+UseSerialGC -cp 'out:jars/*' Started {classes}"
        case _:
            made = {name: _XTEST.sub("", text) if name in tests else text for name, text in whole.items()}
            modules = Path(_jest() or "").parent
            made |= {"read-once.cjs": _READ_ONCE.replace('let allowed = ""', f"let allowed = {json.dumps(' '.join(own))}")}
            config = shlex.quote(json.dumps({"transform": {r"\.[jt]sx?$": "<rootDir>/read-once.cjs"}, "cacheDirectory": "<rootDir>/.read"}))
            jest = f"exec node {modules}/jest/bin/jest.js --ci --runInBand --config {config}{' --verbose' if names else ''}"
            script = f"ln -s {modules} node_modules && {jest}"
    known = languages.LANGUAGES[_NAMES.get(language, language)]
    limits = dataclasses.replace(known.limits(box.limits), seconds=SECONDS, memory=max(box.limits.memory, 3 << 30))
    program = box.program(["/bin/sh", "-c", script], made, limits=limits)
    program = dataclasses.replace(program, environment=known.environment(), watched=True)
    return box.run_programs([program])[0], word


def _python(box: Sandbox, files: Mapping[str, str], tests: Mapping[str, str], solution: list[str]) -> Grade:
    modules = [Path(name).stem for name in solution]
    own = {name: text for name, text in files.items() if name not in tests}
    reaches_in = any("inspect." in text for text in tests.values())
    return grade.grade_unittest(box, own, tests, modules, seconds=SECONDS, together=reaches_in)


def _counted(language: str, text: str) -> bool:
    """Whether the runner's own summary says that tests ran and that all of them passed."""
    if language == "rust":
        ran = sum(map(int, re.findall(r"^running (\d+) tests?$", text, re.MULTILINE)))
        return sum(map(int, re.findall(r"test result: ok\. (\d+) passed; 0 failed", text))) == ran > 0
    return re.search(r"^Tests:\s+(?:\d+ skipped, )?\d+ passed, \d+ total$", text, re.MULTILINE) is not None


@functools.cache
def _jest() -> str | None:
    """The folder of jest in the cache that the user names, or among node's global packages; None where it is not installed."""
    return next(
        (
            f"{place}/jest"
            for place in (*filter(None, [languages.node_modules()]), *_NODE_MODULES)
            if os.path.exists(f"{place}/jest/bin/jest.js")
        ),
        None,
    )


@functools.cache
def _jar(name: str) -> str:
    """The newest jar of that name for JUnit 5, of caches of Maven and Gradle or of Debian's packages; "" where there is none."""
    found: list[tuple[list[int], str]] = []
    for place in ("~/.m2/repository", "~/.gradle/caches/modules-2", "/usr/share/maven-repo"):
        for path in Path(os.path.expanduser(place)).glob(f"**/{name}-[0-9]*.jar"):
            number = path.stem.removeprefix(f"{name}-")
            parts = [int(part) for part in re.findall(r"\d+", number)]
            if re.fullmatch(r"[\d.]+", number) and (not name.startswith("junit") or parts[0] < 6):
                found.append((parts, str(path)))
    return max(found, default=([], ""))[1]


def parts(row: Mapping[str, object]) -> tuple[dict[str, str], dict[str, str], dict[str, str], list[str]]:
    """An exercise's stubs, tests, reference solution under the stubs' names, and the names of the files that may be edited."""
    files: dict[str, str] = dict(row["files"])  # type: ignore[call-overload]
    known = json.loads(files[".meta/config.json"])["files"]
    hidden = (".meta/", ".docs/", ".approaches/", ".articles/")
    tests = {name: text for name, text in files.items() if name in known["test"] or name.startswith("tests/")}
    stubs = {name: text for name, text in files.items() if not name.startswith(hidden) and name not in tests}
    solution = [name for name in known["solution"] if name in files]
    reference: dict[str, str] = {}
    for name in known["example"]:
        same = [one for one in solution if Path(one).suffix == Path(name).suffix]
        named = [one for one in same if Path(one).name == Path(name).name] or same
        if named and name in files:
            reference[named[0]] = files[name]
        elif name in files:
            reference[f"{Path(solution[0]).parent}/{Path(name).name}".removeprefix("./")] = files[name]
    if ".meta/Cargo-example.toml" in files:
        reference["Cargo.toml"] = files[".meta/Cargo-example.toml"]
    return stubs, tests, reference, solution
