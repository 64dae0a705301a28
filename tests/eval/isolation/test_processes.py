"""Processes below one: seen, measured, ended."""

from __future__ import annotations

import os
import subprocess
import sys

from rorqual.eval.isolation import processes

_CODE = """
import subprocess, sys, time
from rorqual.eval.isolation import confine, processes
import os
confine.adopt_orphans()
subprocess.Popen(["/bin/sh", "-c", "(setsid sleep 60 &) ; (sleep 60 &) ; exit 3"])
end = time.monotonic() + 20
while len(processes.children(os.getpid())) < 3 and time.monotonic() < end:
    time.sleep(0.01)
below = list(processes.below(os.getpid()))
ended = processes.end_all()
print(len(below) >= 3, -9 in ended.values() or 9 in ended.values(), processes.children(os.getpid()))
"""


def test_orphans_are_ended_and_collected():
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    assert done.stdout == "True True []\n"


def test_sizes():
    assert processes.resident(os.getpid()) > 1 << 20 and processes.resident(2**22 - 1) == 0
    assert processes.count_of(os.getuid()) >= 1 and processes.children(2**22 - 1) == []
