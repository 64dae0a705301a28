"""Reference solutions in the sandbox: each suite's own must pass, and wrong ones must fail.

python benchmarks/references.py --suite humaneval --data ../shared/data               # one JSON line with passed and total
python benchmarks/references.py --suite polyglot --language rust --data ../shared/data

Suites: humaneval (164), mbpp (974), cruxeval (800, by input), polyglot (one language, Python by default). `wrong` counts solutions made wrong
on purpose that pass all the same: it must be 0. Failing items are named on stderr, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from rorqual.errors import DataError, RorqualError
from rorqual.eval.data import find, read_rows
from rorqual.eval.grade import Grade, entry_of, grade
from rorqual.eval.sandbox import Sandbox
from rorqual.eval.tasks import exercises, polyglot

SECONDS = 40.0  # MBPP 123 counts for five seconds on an idle core
Case = tuple[str, Callable[[Sandbox], Grade], Callable[[Sandbox], Grade]]


def _rows(data: Path, *places: str) -> list[dict[str, Any]]:
    path = find(data, places)
    if path is None:
        raise DataError(f"{' or '.join(str(data / place) for place in places)} is not there; give the folder with --data")
    return read_rows(path)


def _wrong(code: str) -> str:
    """The same functions, each returning what no test wants."""

    class Spoil(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
            node.body = [ast.parse("return ['wrong']").body[0]]
            return node

    return ast.unparse(Spoil().visit(ast.parse(code)))


def _python(number: str, code: str, tests: str, entry: str, context: str) -> Case:
    run = partial(_graded, tests=tests, entry=entry, context=context)
    return number, partial(run, code=code), partial(run, code=_wrong(code))


def _graded(box: Sandbox, code: str, tests: str, entry: str, context: str) -> Grade:
    return grade(box, code, tests, entry=entry, context=context, seconds=SECONDS)


def humaneval(data: Path) -> Iterator[Case]:
    """Prompt and canonical solution against check()."""
    for row in _rows(data, "humaneval/HumanEval.jsonl.gz", "HumanEval.jsonl.gz"):
        tests = f"{row['test']}\ncheck({row['entry_point']})\n"
        yield _python(row["task_id"], row["prompt"] + row["canonical_solution"], tests, row["entry_point"], row["prompt"])


def mbpp(data: Path) -> Iterator[Case]:
    """`code` against all assertions, the harder ones among them."""
    for row in _rows(data, "mbpp/mbpp.jsonl", "mbpp.jsonl"):
        tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"], *row.get("challenge_test_list", [])])
        yield _python(str(row["task_id"]), row["code"], tests, entry_of(row["code"], tests), "")


def cruxeval(data: Path) -> Iterator[Case]:
    """f(input) against output."""
    for row in _rows(data, "cruxeval/cruxeval.jsonl", "cruxeval.jsonl"):
        yield _python(row["id"], row["code"], f"assert f({row['input']}) == {row['output']}", "f", "")


def polyglot_suite(data: Path, language: str) -> Iterator[Case]:
    """Exercism's examples against its tests; the wrong ones are the stubs."""
    path = find(data, (f"aider_polyglot/{language}.jsonl", f"{language}.jsonl"))
    if path is None:
        raise DataError(f"{data}/aider_polyglot/{language}.jsonl is not there; give the folder with --data")
    for row in polyglot._read(path):
        files, tests, reference, solution = exercises.parts(row)
        run = partial(
            exercises.run, language=language, tests=tests, solution=solution, extra=row["extra"], own=[*files.values(), *reference.values()]
        )
        yield row["task"], partial(_exercise, run, {**files, **reference}), partial(_exercise, run, files)


def _exercise(run: Callable[..., Grade], files: dict[str, str], box: Sandbox) -> Grade:
    return run(box, files=files)


def main() -> int:
    """Prints the line; exit code 1 where a wrong solution passes."""
    parser = argparse.ArgumentParser(description="Run reference solutions in the sandbox.")
    parser.add_argument("--suite", required=True, choices=["humaneval", "mbpp", "cruxeval", "polyglot"])
    parser.add_argument("--language", default="python", choices=exercises.LANGUAGES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="the first so many items")
    parser.add_argument("--only", action="append", help="an item by its number or name; may be repeated")
    parser.add_argument("--mechanism", default="", help="bubblewrap or landlock (default: the best)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--references-only", action="store_true", help="leave the wrong solutions out")
    args = parser.parse_args()
    made = {"humaneval": humaneval, "mbpp": mbpp, "cruxeval": cruxeval, "polyglot": partial(polyglot_suite, language=args.language)}
    try:
        cases = [case for case in made[args.suite](args.data) if not args.only or case[0] in args.only][: args.limit]
        box = Sandbox(mechanism=args.mechanism)
        start = time.perf_counter()
        with ThreadPoolExecutor(args.jobs) as pool:
            right = list(pool.map(lambda case: case[1](box), cases))
            seconds = time.perf_counter() - start
            wrong = [] if args.references_only else list(pool.map(lambda case: case[2](box), cases))
    except RorqualError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for (number, *_), found in zip(cases, right, strict=True):
        if not found.right:
            print(f"{number}: {found.note[-300:]}", file=sys.stderr)
    passing = [number for (number, *_), found in zip(cases, wrong, strict=False) if found.right]
    line = {
        "suite": args.suite,
        "passed": sum(one.right for one in right),
        "total": len(cases),
        "wrong": len(passing),
        "wrong_total": len(wrong),
    }
    if args.suite == "polyglot":
        line["language"] = args.language
    failed = [number for (number, *_), found in zip(cases, right, strict=True) if not found.right]
    print(
        json.dumps(
            {**line, "failed": failed, "wrong_passed": passing, "seconds": round(seconds, 1), "mechanism": box.mechanism, "jobs": args.jobs}
        )
    )
    return 1 if passing else 0


if __name__ == "__main__":
    sys.exit(main())
