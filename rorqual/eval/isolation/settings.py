"""What the warden is told once, at its start. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """`mechanism` is "bubblewrap" or "landlock"; `drop` where programs get a uid of their own (started as root).

    `readable` are places beside the system's folders that programs may read and run (an interpreter, toolchains), `hidden` are folders in
    them that they may not; `base` is where work folders are made under Landlock.
    """

    mechanism: str
    drop: bool
    bwrap: str = ""
    readable: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    base: str = "/tmp"
    groups: str = ""
    """Where control groups of runs are made, "" where none can be (cgroup.py), and of which version."""
    groups_version: int = 0
    allowed: dict[str, str] = field(default_factory=dict)
    """For Landlock: what may be read, see confine.landlock; the warden fills it in."""


def allowed(roots: Iterable[str], hidden: Iterable[str]) -> dict[str, str]:
    """Places that Landlock shall open for reading: the roots ("all"), or their parts where something in them is hidden ("list" for folders)."""
    closed = {os.path.realpath(path) for path in hidden}
    out: dict[str, str] = {}
    waiting = [os.path.realpath(root) for root in roots if os.path.exists(root)]
    while waiting:
        path = waiting.pop()
        if path in closed:
            continue
        if any(one.startswith(path + "/") for one in closed):
            out[path] = "list"
            waiting += [f"{path}/{name}" for name in sorted(os.listdir(path)) if not os.path.islink(f"{path}/{name}")]
        else:
            out[path] = "all"
    return out
