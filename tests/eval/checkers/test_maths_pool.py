"""`math-verify` in processes: F38's other rows, and a call that never outlives its limit by more than a second."""

from __future__ import annotations

import os
import subprocess
import threading
import time

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from rorqual.eval.checkers import maths, maths_pool  # noqa: E402

ROWS = [
    ("1,234", "(1,234)", "wrong"), ("(1,2)", "(2,1)", "wrong"), (r"\{1,2\}", r"\{2,1\}", "right"), ("(0,1]", "[0,1]", "wrong"),
    ("3^{-40}", "3^{-41}", "wrong"), (r"\pm 7", "7", "wrong"), ("k=4,6,9", "k=4,6,8", "wrong"), ("x=5", "5", "right"), (r"2\sqrt{3}", r"\sqrt{12}", "right"),
    ("2:30", "1:30", "wrong"), ("5", "5 or 6", "wrong"), (r"2 - 1/\pi", r"2 + 1/\pi", "wrong"), (r"\sqrt{2}", "1.41421356", "wrong"),
    (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", "right"), (r"(-\infty, 2]", r"\left(-\infty,2\right]", "right"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "word"), ROWS)
def test_both_ways_round(one, other, word):
    assert (maths.judge(one, other, 20).word, maths.judge(other, one, 20).word) == (word, word)


def test_answers_that_cannot_be_read():
    assert maths.judge("x+1", "((((((((((", 20) == ("wrong", "the answer cannot be read")
    assert maths.judge("((((((((((", "x+1", 20).word == "undecided"


def test_a_call_keeps_its_limit_and_the_next_one_works():
    maths.judge("x+1", "1+x", 20)
    for hostile in ("9^{9^{9^9}}", r"\frac{" * 400, "x^{" * 200):
        start = time.monotonic()
        maths.judge("x+7", hostile, 0.5)
        assert time.monotonic() - start < 1.5
    start = time.monotonic()
    assert maths.judge("x+7", "9^{9^{9^9}}+x", 0.5) == ("undecided", "no verdict within 0.5 s")
    assert time.monotonic() - start < 1.5
    assert maths.judge("x+1", "1+x", 20).word == "right"


def test_from_several_threads_each_gets_its_own_verdict():
    found: dict[int, str] = {}

    def ask(number: int) -> None:
        found[number] = maths.judge(f"x+{number}", f"{number if number % 2 else number + 1}+x", 20).word

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: "right" if number % 2 else "wrong" for number in range(8)}


def test_a_process_that_dies_is_replaced_and_closing_leaves_none():
    one = maths_pool.Process()
    one.judge("x+1", "1+x", 20)
    assert one._process is not None
    one._process.kill()
    one._process.wait()
    assert one.judge("x+1", "1+x", 20).word == "right"
    number = one._process.pid
    one.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(number, 0)


def test_without_the_library_the_extra_is_named(monkeypatch):
    from rorqual.errors import MissingExtraError

    def missing(*_: object, **given: object) -> subprocess.Popen[bytes]:
        return real(["/bin/sh", "-c", "echo '{\"missing\": true}'"], stdin=-1, stdout=-1, start_new_session=True, bufsize=0)

    real = subprocess.Popen
    monkeypatch.setattr(maths_pool.subprocess, "Popen", missing)
    with pytest.raises(MissingExtraError, match=r"math-verify, which is not installed; run: pip install 'rorqual\[eval\]'"):
        maths_pool.Process().judge("x", "y", 1)
