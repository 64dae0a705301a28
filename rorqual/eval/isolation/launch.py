"""Starts one confined program and holds its pipes, its folder and its end. Runs in the process of supervise.py. No torch."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import platform
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from rorqual.eval.isolation import bubblewrap, calls, confine, processes
from rorqual.eval.isolation.cgroup import Group
from rorqual.eval.isolation.settings import Settings

FIRST_UID, UIDS = 61184, 4000
_SPARE = 64  # processes that the same ordinary user may start meanwhile
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_INODES = 20_000


class Launched:
    """A running program."""

    def __init__(self, wanted: dict[str, Any], settings: Settings, folder: str, group: Group | None = None) -> None:
        self.wanted, self.settings, self.folder, self.group = wanted, settings, folder, group
        self.pid, self.pidfd, self.started = 0, -1, time.monotonic()
        self.outputs: list[int] = []
        self.texts = (bytearray(), bytearray())
        self.limit = ""
        self.trouble, self.report = -1, -1
        self._said: dict[str, int] | None = None

    def read(self, number: int) -> bool:
        """Takes what stands in a pipe; False at its end. Too much is a broken limit."""
        try:
            part = os.read(self.outputs[number], 1 << 16)
        except BlockingIOError:
            return True
        self.texts[number].extend(part)
        if len(self.texts[number]) > self.wanted["output"]:
            del self.texts[number][self.wanted["output"] :]
            self.limit = self.limit or "output"
        return bool(part)

    def drain(self) -> None:
        """Takes what is left in the pipes; the writers are gone by now."""
        for number in range(2):
            limit = self.limit
            while self.read(number) and not (self.limit and not limit):
                pass

    def look(self) -> None:
        """Checks memory, processes and folder against their limits."""
        own = 2 if self.settings.mechanism == "bubblewrap" else 0
        below = list(processes.below(self.pid))
        if len(below) + 1 - own > self.wanted["processes"]:
            self.limit = self.limit or "processes"
        if sum(map(processes.resident, [self.pid, *below])) > self.wanted["memory"]:
            self.limit = self.limit or "memory"
        self._look_at_folder(below)

    def _look_at_folder(self, below: list[int]) -> None:
        if self.settings.mechanism == "landlock":
            used, count = _usage(self.folder, self.wanted["disk"], _INODES)
            if used > self.wanted["disk"] or count > _INODES:
                self.limit = self.limit or "disk"
        elif below:
            with contextlib.suppress(OSError):  # the size is held by the file system itself; the number of files is not
                found = os.statvfs(f"/proc/{below[-1]}/root{bubblewrap.WORK}")
                if 0 < found.f_files and found.f_files - found.f_ffree > _INODES and found.f_blocks * found.f_frsize <= self.wanted["disk"]:
                    self.limit = self.limit or "disk"

    def fault(self, ended: dict[int, int]) -> str:
        """Why the program was never started, "" if it was; `ended` are the statuses of collected processes."""
        said = _all_of(self.trouble).decode(errors="replace")
        if said:
            return said
        if self.settings.mechanism == "bubblewrap" and os.WIFEXITED(ended[self.pid]) and "exit-code" not in self._reported():
            return f"bubblewrap did not start the program: {self.texts[1].decode(errors='replace').strip()[:300]}"
        return ""

    def _reported(self) -> dict[str, int]:
        if self._said is None:
            self._said = {}
            for line in _all_of(self.report).decode(errors="replace").splitlines():
                with contextlib.suppress(ValueError):
                    self._said |= json.loads(line)
        return self._said

    def status(self, ended: dict[int, int]) -> int:
        """Exit status, or minus the signal that ended the program; `ended` are the statuses of collected processes."""
        if self.settings.mechanism == "landlock":
            return os.waitstatus_to_exitcode(ended[self.pid])
        code = self._reported().get("exit-code", 128 + signal.SIGKILL)
        return 128 - code if 128 < code <= 192 else code

    def settle(self) -> None:
        """Names the limit that the kernel held."""
        if self.group is not None and self.group.broken():
            self.limit = self.limit or "memory"

    def clear(self) -> None:
        """Closes what is open and removes the folder and the group."""
        if self.group is not None:
            self.group.remove()
        for handle in (*self.outputs, self.pidfd, self.trouble, self.report):
            if handle >= 0:
                os.close(handle)
        if self.folder:
            remove(self.folder)


def launch(wanted: dict[str, Any], settings: Settings, index: int, link: socket.socket | None) -> Launched:
    """Starts program `index` of this run, with `link` as its descriptor 3. Nothing but descriptors 0 to 2 or 3 reaches the program."""
    uid = FIRST_UID + (2 * os.getpid() + index) % UIDS if settings.drop else None
    folder = _folder(wanted, settings, uid) if settings.mechanism == "landlock" else ""
    one = Launched(wanted, settings, folder, _group(wanted, settings, index))
    source = _memory_file("stdin", base64.b64decode(wanted["stdin"]))
    out, err, trouble, report = (os.pipe() for _ in range(4))
    one.outputs, one.trouble, one.report = [out[0], err[0]], trouble[0], report[0]
    for handle in one.outputs:
        os.set_blocking(handle, False)
    kept = [source]
    place = folder or bubblewrap.WORK
    argv = [part.replace("{work}", place) for part in wanted["argv"]]
    environment = {name: value.replace("{work}", place) for name, value in wanted["environment"].items()}
    if settings.mechanism == "bubblewrap":
        code = calls.program(platform.machine(), shared=False, signals=True, attributes=True, memory_files=wanted["memory_files"])
        kept.append(_memory_file("seccomp", code))
        filter_handle = kept[-1]
        files = {name: _memory_file("file", base64.b64decode(text)) for name, text in wanted["files"].items()}
        kept += [*files.values(), report[1]]
        argv = bubblewrap.arguments(
            settings.bwrap, readable=settings.readable, hidden=settings.hidden, files=files, folders=_folders(wanted["files"]),
            disk=wanted["disk"], environment=environment, seccomp=filter_handle, argv=argv, report=report[1],
        )  # fmt: skip
        environment = {}
    asker = os.getpid()
    one.pid = os.fork()
    if one.pid == 0:
        try:
            os.setsid()
            for number, handle in enumerate((source, out[1], err[1], *([link.fileno()] if link else []))):
                os.dup2(handle, number)
            _close_others({*kept[1:], trouble[1]}, 4 if link else 3)
            for handle in kept[1:]:
                os.set_inheritable(handle, True)
            if one.group is not None:
                one.group.enter()
            _confine(wanted, settings, uid, folder, asker)
            os.execve(argv[0], argv, environment)
        except BaseException as error:
            os.write(trouble[1], f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(127)
    one.pidfd = os.pidfd_open(one.pid)
    for handle in {*kept, out[1], err[1], trouble[1], report[1]}:
        os.close(handle)
    return one


def _group(wanted: dict[str, Any], settings: Settings, index: int) -> Group | None:
    """A control group of this run's, None where none can be made; files in memory count in it, so it holds memory and disk."""
    if not settings.groups:
        return None
    name, limit = f"rorqual-run-{os.getpid()}-{index}", wanted["memory"] + wanted["disk"]
    return Group(settings.groups, settings.groups_version, name, limit)


def _confine(wanted: dict[str, Any], settings: Settings, uid: int | None, folder: str, asker: int) -> None:
    """The child's last steps before it becomes the program."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    own = 2 if settings.mechanism == "bubblewrap" else 0
    processes_limit = wanted["processes"] + own if uid is not None else processes.count_of(os.getuid()) + wanted["processes"] + own + _SPARE
    confine.limits(
        cpu=wanted["cpu"], address_space=wanted["address_space"], file_size=wanted["file_size"], open_files=wanted["open_files"] + 4,
        processes=processes_limit,
    )  # fmt: skip
    if uid is not None:
        confine.become(uid)
    confine.die_with_parent()
    if os.getppid() != asker:
        os._exit(0)
    for name in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD, signal.SIGINT):
        signal.signal(name, signal.SIG_DFL)
    os.umask(0o077)
    confine.no_new_privileges()
    if settings.mechanism == "landlock":
        os.chdir(folder)
        confine.landlock(settings.allowed, [folder], _DEVICES)
        confine.seccomp(confine.landlock_filter(own_user=uid is None, memory_files=wanted["memory_files"]))
    else:
        os.chdir("/")


def _close_others(kept: set[int], first: int) -> None:
    """Closes every descriptor from `first` on but these."""
    for handle in sorted(kept):
        os.closerange(first, handle)
        first = handle + 1
    os.closerange(first, 1 << 16)


def _memory_file(name: str, content: bytes) -> int:
    handle = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _folders(names: Sequence[str]) -> list[str]:
    """Every folder that the names need, outer ones first."""
    found = {"/".join(parts[:count]) for name in names for parts in [name.split("/")] for count in range(1, len(parts))}
    return sorted(found)


def _folder(wanted: dict[str, Any], settings: Settings, uid: int | None) -> str:
    """A work folder with the program's files, owned by the program's user, in a place that only he can list."""
    folder = tempfile.mkdtemp(prefix=f"run-{os.getpid()}-", dir=settings.base)
    places = [folder, *(f"{folder}/{name}" for name in _folders(wanted["files"]))]
    for place in places[1:]:
        os.mkdir(place, 0o700)
    for name, text in wanted["files"].items():
        with open(f"{folder}/{name}", "wb") as file:
            file.write(base64.b64decode(text))
        places.append(f"{folder}/{name}")
    if uid is not None:
        for place in reversed(places):
            os.chown(place, uid, uid)
    return folder


def _usage(folder: str, bytes_limit: int, count_limit: int) -> tuple[int, int]:
    """Bytes and files below a folder; stops once one of the limits is passed. Very deep nesting counts as too many files."""
    total = count = 0
    waiting = [folder]
    while waiting and total <= bytes_limit and count <= count_limit:
        place = waiting.pop()
        count += 1
        if len(place) > 2000:
            return total, count_limit + 1
        with contextlib.suppress(OSError):  # most often: it is gone meanwhile
            for name in os.listdir(place):
                found = os.lstat(f"{place}/{name}")
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(f"{place}/{name}")
                else:
                    total += found.st_blocks * 512
                    count += 1
    return total, count


def remove(folder: str) -> None:
    """Removes a folder whatever a program made of it: modes without rights, very deep nesting."""
    try:
        _remove(folder, 40)
    except OSError:
        erase = ["rm", "-rf", "--one-file-system", folder]
        if subprocess.run(erase, stderr=subprocess.DEVNULL, check=False).returncode:
            subprocess.run(["chmod", "-R", "u+rwX", folder], stderr=subprocess.DEVNULL, check=False)
            subprocess.run(erase, stderr=subprocess.DEVNULL, check=False)


def _remove(folder: str, depth: int) -> None:
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
        elif depth:
            _remove(path, depth - 1)
        else:
            raise OSError(errno.ELOOP, "folders in folders in folders")
    os.rmdir(folder)


def _all_of(handle: int) -> bytes:
    """What stands in a pipe whose writers are gone."""
    out = b""
    while part := os.read(handle, 1 << 16):
        out += part
    return out
