"""The grading process: scores, scorers that raise, answers that come too late, a process that dies."""

import os
import signal

import pytest

from rorqual.posttrain.grader import Grader, GraderError


@pytest.fixture(scope="module")
def entry():
    reasoning_gym = pytest.importorskip("reasoning_gym", reason="the grading process asks reasoning-gym")
    return reasoning_gym.create_dataset("chain_sum", size=1, seed=0)[0]


@pytest.mark.peer
def test_scores_and_failures(entry):
    grader = Grader(5.0)
    try:
        assert grader.score("chain_sum", entry["answer"], entry) == 1.0
        assert grader.score("chain_sum", f"{entry['answer']} I think", entry) < 1.0
        with pytest.raises(GraderError, match="not allowed"):
            grader.score("countdown", "__import__('os').getpid()", {})
        os.killpg(grader._process.pid, signal.SIGKILL)
        grader._process.wait()
        assert grader.score("chain_sum", entry["answer"], entry) == 1.0  # started again
        os.kill(grader._process.pid, signal.SIGSTOP)
        grader.seconds = 0.2
        with pytest.raises(TimeoutError):
            grader.score("chain_sum", "1", entry)
        assert grader._process is None
    finally:
        grader.close()
