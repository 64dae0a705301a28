"""Processes below this one, from /proc: who they are, what memory they hold, and how to end them all. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from rorqual.errors import DeviceError

_PAGE = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Direct children, of all of its threads."""
    out: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                out += map(int, file.read().split())
    return out


def below(pid: int) -> Iterator[int]:
    """Every process that comes of `pid`, itself left out."""
    waiting = children(pid)
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            yield one
            waiting += children(one)


def resident(pid: int) -> int:
    """Bytes in memory, 0 for a process that is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def end_all(seconds: float = 10.0) -> dict[int, int]:
    """Ends everything below this process and collects it; orphans must come to this process (see confine.adopt_orphans).

    Returns the wait statuses by process.
    """
    last, ended = time.monotonic() + seconds, {}
    while True:
        for pid in below(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                ended[found[0]] = found[1]
        except ChildProcessError:
            return ended
        if time.monotonic() > last:
            raise DeviceError("processes of a sandboxed program do not end; look for processes of uids from 61184 on")
        time.sleep(0.0005)


def count_of(uid: int) -> int:
    """Threads that a user has now, as RLIMIT_NPROC counts them."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == uid:
                    total += len(os.listdir(f"/proc/{name}/task"))
    return total
