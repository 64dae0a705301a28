"""What memory the system can still give, and what becomes of what is freed. No torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the names of malloc.h


def available_bytes() -> int | None:
    """Bytes, caches that can be dropped included; None where the system does not say."""
    try:
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


LARGE_PAGE = 2 * 2**20


class LargePages:
    """Zeros handed out piece by piece, one behind the other, in pages of 2 MiB where the system gives them.

    A model's weights are read from end to end for every token; in pages of 4 KiB the walks through the page tables cost a quarter of that.
    Nothing is taken from the system before it is written to.
    """

    def __init__(self) -> None:
        self._pages: mmap.mmap | None = None
        self._at = self._end = 0

    def take(self, count: int) -> tuple[mmap.mmap, int]:
        """(memory, where in it `count` bytes begin), at the start of a cache line; the memory lives as long as somebody holds it."""
        if self._pages is None or self._at + count > self._end:
            room = max(count, 32 * LARGE_PAGE)
            self._pages = mmap.mmap(-1, room + LARGE_PAGE)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them
                    self._pages.madvise(mmap.MADV_HUGEPAGE)
            self._at = -ctypes.addressof(ctypes.c_char.from_buffer(self._pages)) % LARGE_PAGE
            self._end = self._at + room
        start = self._at
        self._at = start + -(-count // 64) * 64
        return self._pages, start


@functools.cache
def keep_freed() -> bool:
    """Has the C library keep large freed blocks for the next request; whether it does (glibc alone has the switch).

    A training step asks for the same blocks again and again. Given back to the system in between, they come as empty pages that
    cost a fault each: 20,000 in a step of 2,048 tokens of 25M parameters, a twelfth of its time. The peak stays what it was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(name, 1 << 30) == 1 for name in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))
