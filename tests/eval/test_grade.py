"""Tests decide, whatever a candidate does: right ones pass, tricks score zero (F39)."""

from __future__ import annotations

import pytest

from rorqual.eval.grade import Grade, entry_of, grade, grade_output, grade_unittest
from tests.eval import boxes

_TESTS = "def check(candidate):\n    assert candidate(2, 3) == 5\n    assert candidate([1], [2]) == [1, 2]\ncheck(add)\n"

_TRICKS = {
    "says that it passed": "print('passed')\nprint('1 passed')\ndef add(a, b):\n    print('passed')\n    return 0",
    "exits 0 at import": "import sys; sys.exit(0)",
    "exits 0 hard": "import os\ndef add(a, b):\n    os._exit(0)",
    "raises SystemExit": "def add(a, b):\n    raise SystemExit(0)",
    "equals everything": "class A:\n    def __eq__(s, o): return True\n    __ne__ = lambda s, o: False\n    __bool__ = lambda s: True\ndef add(a, b):\n    return A()",
    "text that equals everything": "class A(str):\n    def __eq__(s, o): return True\n    __hash__ = str.__hash__\ndef add(a, b):\n    return A('x')",
    "list that equals everything": "class A(list):\n    def __eq__(s, o): return True\ndef add(a, b):\n    return A()",
    "patches builtins": "import builtins\nbuiltins.AssertionError = type('X', (Exception,), {})\nbuiltins.compile = lambda *a: ''\ndef add(a, b):\n    return 0",
    "looks into frames": """
import sys, gc, re
def add(a, b):
    frame = sys._getframe()
    while frame:
        for value in (*frame.f_locals.values(), *frame.f_globals.values()):
            found = re.search(r'== (.+)', value) if isinstance(value, str) else None
            if found: return eval(found[1])
        frame = frame.f_back
    for one in gc.get_objects():
        if isinstance(one, (str, list, dict)) and 'candidate(2, 3)' in str(one)[:100000]: return 5
""",
    "looks into files": """
import os, re
def add(a, b):
    for place in ('.', '..', '/tmp', '/proc/self/fd'):
        for root, _, names in os.walk(place):
            for name in names:
                try: text = open(os.path.join(root, name), errors='replace').read()
                except Exception: continue
                found = re.search(r'candidate.2, 3. == (.+)', text)
                if found: return eval(found[1])
""",
    "rewrites the tests": "for n in ('tests.py', '../tests.py', 'rorqual/eval/isolation/tested.py'):\n    try: open(n, 'w').write('')\n    except OSError: pass\ndef add(a, b): return 0",
    "patches the link": """
import json, os, struct
import rorqual.eval.isolation.link as link
def add(a, b):
    body = json.dumps(['=', ['l', [1, 2]]]).encode()
    for _ in range(9): os.write(3, struct.pack('=I', len(body)) + body)
    os._exit(0)
""",
    "asks the tests for their globals": """
import rorqual.eval.isolation.link as link
def add(a, b):
    import gc
    peer = next(one for one in gc.get_objects() if isinstance(one, link.Peer))
    for number in range(1, 9):
        for name in ('__globals__', 'f_globals', '__code__', '__self__'):
            try: return peer.ask('getattr', link.Remote(peer, number), name)
            except Exception: pass
    return peer.ask('import', 'tests')
""",
    "forks away": "import os\nif os.fork():\n    os._exit(0)\nos.setsid()\ndef add(a, b): return 0",
    "raises the tests' own error": "def add(a, b):\n    raise AssertionError",
    "never ends": "def add(a, b):\n    while True: pass",
    "sends nonsense": "import os\nos.write(3, b'\\xff' * 64)\ndef add(a, b): return 5",
    "sends a length and no more": "import os, time\nos.write(3, b'\\xff\\xff\\x00\\x00')\ntime.sleep(60)",
    "has no such function": "def other(): pass",
    "is no Python": "def add(a, b:",
    "is empty": "",
}  # fmt: skip


@pytest.mark.parametrize("name", _TRICKS)
def test_tricks_score_zero(name):
    found = grade(boxes.best(), _TRICKS[name], _TESTS, entry="add", seconds=1.5)
    assert not found.right and found.passed == 0 and found.note


@pytest.mark.parametrize("mechanism", ["bubblewrap", pytest.param("landlock", marks=pytest.mark.slow)])
def test_right_code_passes(mechanism):
    box = boxes.opened(mechanism)
    assert grade(box, "def add(a, b):\n    return a + b", _TESTS, entry="add") == Grade(1, 1)
    assert grade(box, "def add(a, b):\n    return a - b", "assert add(2, 2) == 1") == Grade(0, 1, "AssertionError: ")


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x): return (n * n for n in range(x))", "assert list(f(4)) == [0, 1, 4, 9] and tuple(f(2)) == (0, 1)"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: x * 2, 4) == 16"),
        (
            "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef f(x): return sum(p.a * p.b for p in x)",
            "assert f([Pair(2, 3), Pair(1, 1)]) == 7",
        ),
        (
            "class E(ValueError): pass\ndef f():\n    raise E('a', 2)",
            "try:\n    f()\nexcept ValueError as e:\n    assert e.args == ('a', 2) and isinstance(e, E)\nelse:\n    assert False",
        ),
        (
            "import datetime, decimal, fractions\ndef f(): return [1 << 99, float('inf'), 1j, b'a', {(1, 2): {3}}, None, True, range(3), datetime.date(2024, 2, 1), decimal.Decimal('1.10'), fractions.Fraction(1, 3)]",
            "import datetime\nfrom decimal import Decimal\nfrom fractions import Fraction\nassert f() == [1 << 99, float('inf'), 1j, b'a', {(1, 2): {3}}, None, True, range(3), datetime.date(2024, 2, 1), Decimal('1.10'), Fraction(1, 3)]",
        ),
        ("def f(x):\n    x.append(1)\n    return x", "assert f([]) == [1] and math.isclose(f([0.5])[0], 0.5)"),
        ("def f(n): return 10 ** n", "assert f(9000) == 10 ** 9000"),
        ("def f(n):\n    return 0 if n == 0 else 1 + f(n - 1)", "assert f(900) == 900"),
    ],
)
def test_what_crosses_between_the_boxes(code, tests):
    found = grade(boxes.best(), code, tests)
    assert found.right, found


def test_helpers_of_the_task_come_from_the_task():
    """HumanEval's tests call helper functions of the prompt; a candidate that redefines them changes nothing."""
    context = "def double(x):\n    return 2 * x\n\ndef half(x):\n    '''x / 2'''\n"
    tests = "assert double(half(8)) == 8"
    assert grade(boxes.best(), context + "    return x / 2", tests, entry="half", context=context).right
    cheat = "def double(x): return 8\ndef half(x): return 0"
    assert not grade(boxes.best(), cheat, tests, entry="half", context=context).right
    assert grade(
        boxes.best(), "def sum(a, b): return a * b", "assert sum(2, 5) == 10", entry=entry_of("def sum(a, b): pass", "assert sum(1, 1)")
    ).right
    assert entry_of("def sum(a, b): pass", "assert sum(1, 2) == 1") == "sum" and entry_of("def f(): pass", "assert f() == sum([])") == ""


def test_limits_are_named():
    found = grade(boxes.best(), "def f():\n    while True: pass", "f()", seconds=1)
    assert (found.passed, found.limit, found.note) == (0, "seconds", "limit of seconds passed")


_CASES = "import unittest\nfrom stack import Stack, Empty\n\nclass T(unittest.TestCase):\n    def test_a(self):\n        s = Stack([1, 2])\n        self.assertEqual((s.pop(), len(s)), (2, 1))\n    def test_b(self):\n        with self.assertRaises(Empty) as e:\n            Stack([]).pop()\n        self.assertEqual(e.exception.args[0], 'empty')\n"  # fmt: skip
_STACK = "class Empty(Exception): pass\nclass Stack:\n    def __init__(self, x): self.x = list(x)\n    def __len__(self): return len(self.x)\n    def pop(self):\n        if not self.x: raise Empty('empty')\n        return self.x.pop()\n"  # fmt: skip


def test_unittest_modules():
    box = boxes.best()
    assert grade_unittest(box, {"stack.py": _STACK}, {"stack_test.py": _CASES}, ["stack"]) == Grade(2, 2)
    half = grade_unittest(box, {"stack.py": _STACK.replace("'empty'", "'x'")}, {"stack_test.py": _CASES}, ["stack"])
    assert (half.passed, half.total) == (1, 2) and "'x' != 'empty'" in half.note
    patched = (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\nunittest.TestCase.run = lambda *a: None\n"
        + _STACK.replace("2", "3").replace("pop()", "pop(0)")
    )
    assert not grade_unittest(box, {"stack.py": patched}, {"stack_test.py": _CASES}, ["stack"]).right
    assert not grade_unittest(box, {"stack.py": "import os; os._exit(0)"}, {"stack_test.py": _CASES}, ["stack"]).right


def test_programs_by_their_output():
    box = boxes.best()
    cases = [("1 2", "3"), ("4 5", "9 \n")]
    assert grade_output(box, "print(sum(map(int, input().split())))", cases) == Grade(2, 2)
    assert grade_output(box, "print(3)", cases) == Grade(1, 2, "test 1: wrong output")
    assert grade_output(box, "print('3\\n4')", [("", "3")]).passed == 0  # more than was wanted is wrong
    assert grade_output(box, "print(3); 1/0", [("", "3")]).note == "test 0: ZeroDivisionError: division by zero"
