"""Started as root: shows interpreters and toolchains below closed folders (root's home) to programs of another uid, and nothing else there.

The warden gets a mount namespace of its own. Over each closed folder it mounts an empty one, with the places that are needed in it, read-only.
Where the system does not allow that, only what other users can reach is used. No torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from rorqual.eval.isolation import confine

_NEW_MOUNTS, _BIND, _RECURSIVE, _PRIVATE, _READ_ONLY, _REMOUNT, _NO_SETUID, _NO_DEVICES = 0x20000, 4096, 16384, 1 << 18, 1, 32, 2, 4


def closed_folder(path: str) -> str | None:
    """The outermost folder on the way to `path` that others may not enter, None where the way is open."""
    parts = os.path.realpath(path).split("/")
    for count in range(2, len(parts) + 1):
        place = "/".join(parts[:count])
        if not os.stat(place).st_mode & 0o001:
            return place
    return None


def stage(paths: Iterable[str]) -> None:
    """Opens the way to `paths` for programs; OSError where that is needed and the system does not allow it."""
    closed: dict[str, list[str]] = {}
    for path in paths:
        folder = closed_folder(path) if os.path.isdir(path) else closed_folder(os.path.dirname(path))
        if folder is not None and folder != path:
            closed.setdefault(folder, []).append(os.path.realpath(path))
    if not closed:
        return
    confine.unshare(_NEW_MOUNTS)
    confine.mount("none", "/", None, _RECURSIVE | _PRIVATE)
    for folder, places in closed.items():
        handles = {place: os.open(place, os.O_PATH) for place in places}
        confine.mount("none", folder, "tmpfs", _NO_SETUID | _NO_DEVICES, "mode=0755,size=1m")
        for place, handle in handles.items():
            _make_place(place, os.path.isdir(f"/proc/self/fd/{handle}"))
            confine.mount(f"/proc/self/fd/{handle}", place, None, _BIND)
            confine.mount("none", place, None, _BIND | _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES)
            os.close(handle)
        confine.mount("none", folder, None, _REMOUNT | _READ_ONLY | _NO_SETUID | _NO_DEVICES, "mode=0755,size=1m")


def _make_place(place: str, folder: bool) -> None:
    os.makedirs(place if folder else os.path.dirname(place), 0o755, exist_ok=True)
    if not folder:
        with open(place, "wb"):
            pass
