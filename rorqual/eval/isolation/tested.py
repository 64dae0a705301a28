"""Runs tests in their own box, against a candidate in another one (link.py). Runs inside the box, with the standard library alone. No torch.

The verdict is one JSON object on the last line of stdout, beside a word that only the caller and this box know. Nothing of the candidate's
runs here, so nothing of his can print it.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import sys
import types
from typing import Any

from rorqual.eval.isolation.link import Peer
from rorqual.eval.isolation.remote import FarModule


def main() -> None:
    """`sys.argv[1]` is the kind of tests, `stdin` a JSON object with the word and the tests."""
    given = json.loads(sys.stdin.read())
    sys.path.insert(0, ".")
    sys.set_int_max_str_digits(0)
    sys.setrecursionlimit(10_000)
    peer = Peer(3, guarded=True)
    try:
        found = {"assertions": _assertions, "unittest": _unittests, "together": _together}[sys.argv[1]](peer, given)
    except BaseException as error:
        found = {"passed": 0, "total": 1, "note": f"{type(error).__name__}: {error}"[:500]}
    print(f"\n{given['word']} {json.dumps(found)}", flush=True)


def _assertions(peer: Peer, given: dict[str, Any]) -> dict[str, Any]:
    """Runs the text of tests. Names that neither it, nor the given context, nor Python knows are the candidate's."""
    space: dict[str, Any] = {"__name__": "tests"}
    sys.modules["tests"] = types.ModuleType("tests")
    if given["context"]:
        exec(compile(given["context"], "context.py", "exec"), space)
    tree = ast.parse(given["tests"])
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - (set(dir(builtins)) - {given["entry"]})
    bound = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    bound |= {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    bound |= {
        (item.asname or item.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for item in node.names
    }
    wanted = sorted(names - bound - (set(space) - {given["entry"]}))
    for name in wanted:
        if name in sys.stdlib_module_names:
            space[name] = importlib.import_module(name)
    far = peer.ask("import", "candidate")
    for name in peer.ask("names", far, [one for one in wanted if one not in sys.stdlib_module_names]):
        space[name] = getattr(far, name)
    exec(compile(tree, "tests.py", "exec"), space)
    return {"passed": 1, "total": 1, "note": ""}


def _unittests(peer: Peer, given: dict[str, Any]) -> dict[str, Any]:
    """Runs unittest's cases in the modules `given["tests"]`; the modules `given["modules"]` are the candidate's."""
    for name in given["modules"]:
        sys.modules[name] = FarModule(name, peer)
    return _together(peer, given)


def _together(peer: Peer, given: dict[str, Any]) -> dict[str, Any]:
    """The same with the candidate's modules in this box."""
    import io
    import unittest

    suite = unittest.TestSuite()
    for name in given["tests"]:
        suite.addTests(unittest.defaultTestLoader.loadTestsFromModule(importlib.import_module(name)))
    total = suite.countTestCases()
    stream = io.StringIO()
    result = unittest.TextTestRunner(stream=stream, verbosity=1).run(suite)
    bad = len(result.failures) + len(result.errors) + len(result.unexpectedSuccesses)
    whole = total > 0 and result.testsRun == total and result.wasSuccessful()
    return {
        "passed": total if whole else max(0, min(total - 1, result.testsRun - bad)),
        "total": max(1, total),
        "note": "" if whole else stream.getvalue()[-8000:],
    }
