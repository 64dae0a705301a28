"""A control group for each run, where this process may make one: the kernel then holds the memory of all programs of a run together. No torch.

Version 2 where the memory controller is handed down to a group that this user may write (root, or a delegated slice of systemd), else version 1
under the same condition, else none: then resident size is watched alone (launch.py), as it is beside a group too. A group's limit counts what
lies in files in memory as well, so it is the program's memory and its disk together.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_V2 = {"limit": "memory.max", "swap": "memory.swap.max", "events": "memory.events"}
_V1 = {"limit": "memory.limit_in_bytes", "swap": "memory.memsw.limit_in_bytes", "events": "memory.oom_control"}
_LEAST = 64 << 20


def find(process: str = "/proc/self") -> tuple[str, int]:
    """(folder below which groups can be made, version 1 or 2), shown by making one; ("", 0) where there is none."""
    for folder, version in _candidates(process):
        with contextlib.suppress(OSError):
            if version == 2 and "memory" not in (Path(folder) / "cgroup.subtree_control").read_text().split():
                continue
            Group(folder, version, f"rorqual-probe-{os.getpid()}", _LEAST).remove()
            return folder, version
    return "", 0


def _candidates(process: str) -> list[tuple[str, int]]:
    """Folders of groups near this process, the best first: its own group and the one above it (version 2), its own (version 1)."""
    try:
        groups = [line.split(":", 2) for line in Path(process, "cgroup").read_text().splitlines()]
        mounts = [line.split() for line in Path(process, "mountinfo").read_text().splitlines()]
    except OSError:
        return []
    out: list[tuple[str, int]] = []
    for fields in mounts:
        root, place = fields[3], fields[4]
        kind, _, options = fields[fields.index("-") + 1 :][:3]
        for number, controllers, path in groups:
            if kind == "cgroup2" and number == "0":
                own = _below(place, root, path)
                out += [(own, 2), (os.path.dirname(own), 2)] if own != place else [(own, 2)]
            elif kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                out.append((_below(place, root, path), 1))
    return sorted(out, key=lambda one: -one[1])


def _below(place: str, root: str, path: str) -> str:
    inside = path.removeprefix(root) if root != "/" else path
    return os.path.normpath(f"{place}/{inside}")


class Group:
    """One group with a limit in bytes. OSError where it cannot be made, and then nothing of it is left."""

    def __init__(self, folder: str, version: int, name: str, limit: int) -> None:
        self.path, self._files = f"{folder}/{name}", _V2 if version == 2 else _V1
        os.mkdir(self.path)
        try:
            self._write(self._files["limit"], str(limit))
            with contextlib.suppress(OSError):  # swap is not counted on every kernel
                self._write(self._files["swap"], "0" if version == 2 else str(limit))
        except OSError:
            self.remove()
            raise

    def enter(self) -> None:
        """Puts the calling process, and so all that come of it, into the group."""
        self._write("cgroup.procs", "0")

    def broken(self) -> bool:
        """Whether the kernel has ended a process for the group's memory."""
        with contextlib.suppress(OSError, ValueError):
            for line in Path(self.path, self._files["events"]).read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value) > 0
        return False

    def remove(self) -> None:
        """Takes the group away; its processes are gone by now, the kernel may need a moment to see that."""
        for _ in range(100):
            try:
                os.rmdir(self.path)
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(0.002)

    def _write(self, name: str, text: str) -> None:
        with open(f"{self.path}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def clear(folder: str) -> None:
    """Removes groups of runs whose process is gone (it was killed)."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            parts = name.split("-")
            if name.startswith("rorqual-run-") and len(parts) == 4 and parts[2].isdigit() and not os.path.exists(f"/proc/{parts[2]}"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{folder}/{name}")
