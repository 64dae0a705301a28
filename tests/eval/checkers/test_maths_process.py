"""The comparison itself, in this process: exactness beyond `math-verify`'s rounding, and what cannot be read."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

pytest.importorskip("math_verify", reason="math-verify is not installed")

from rorqual.eval.checkers import maths_process  # noqa: E402


@pytest.mark.filterwarnings("ignore")
def test_compare():
    assert maths_process.compare("3^{-40}", "3^{-41}") == ("wrong", "equal only when rounded")
    assert maths_process.compare("(3^{-40}, 1)", "(3^{-41}, 1)") == ("wrong", "equal only when rounded")
    assert maths_process.compare(r"\{3^{-40}, 1\}", r"\{1, 3^{-40}\}") == ("right", "")
    assert maths_process.compare(r"0.5\pi", r"\frac{\pi}{2}") == ("right", "")
    assert maths_process.compare("((((", "1") == ("undecided", "the right answer cannot be read")


def test_serving(tmp_path):
    """The protocol: ready, then a line for each question, in a fresh process."""
    import subprocess

    asked = "".join(json.dumps({"right": "x+1", "answer": answer, "seconds": 20}) + "\n" for answer in ("1+x", "x"))
    start = "import sys; from rorqual.eval.checkers.maths_process import main; main()"
    done = subprocess.run([sys.executable, "-c", start], input=asked.encode(), capture_output=True, timeout=60, cwd=os.getcwd(), check=True)
    said = [json.loads(line) for line in io.BytesIO(done.stdout)]
    assert said == [{"ready": True}, {"word": "right", "note": ""}, {"word": "wrong", "note": ""}] and done.stderr == b""
