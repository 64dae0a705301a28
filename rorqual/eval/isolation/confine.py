"""What one process does to itself before it becomes generated code: limits, user, Landlock, seccomp. Standard library and ctypes. No torch.

Every function raises OSError where the kernel refuses: nothing is run then.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from collections.abc import Iterable, Mapping

from rorqual.eval.isolation import calls

_EXECUTE, _WRITE, _READ, _LIST, _REFER, _TRUNCATE, _IOCTL = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 13, 1 << 14, 1 << 15
_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11  # MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK: allowed nowhere
_OF_FILES = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL
LEAST_LANDLOCK = 3
"""The oldest Landlock that is enough: it governs truncation (Linux 6.2)."""


def libc() -> ctypes.CDLL:
    """The C library of this process, with errno."""
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> int:
    library = libc()
    found = int(getattr(library, name)(*arguments))
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return found


def system_call(number: int, *arguments: object) -> int:
    """A system call by number; OSError where it fails."""
    return _call("syscall", ctypes.c_long(number), *arguments)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    _call("mount", source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), options and options.encode())


def unshare(flags: int) -> None:
    """unshare(2)."""
    _call("unshare", flags)


def prctl(option: int, value: int) -> None:
    """prctl(2) with one argument."""
    _call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def die_with_parent() -> None:
    """SIGKILL when the process that started this one ends."""
    prctl(1, 9)


def adopt_orphans() -> None:
    """Children whose parents end become children of this process, so none is out of reach."""
    prctl(36, 1)


def no_new_privileges() -> None:
    """From here on set-user-id files give nothing."""
    prctl(38, 1)


def landlock_version() -> int:
    """Landlock's ABI version, 0 where the kernel has none."""
    try:
        return system_call(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def landlock(readable: Mapping[str, str], writable: Iterable[str], devices: Iterable[str]) -> None:
    """Allows reading and running `readable` ("all", or "list" for names alone), everything below `writable`, use of `devices`; no more.

    TCP, abstract sockets and signals to processes outside are refused too where the kernel knows how (versions 4 and 6).
    """
    version = landlock_version()
    rights = (1 << min(16, 13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    attribute = struct.pack("=QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = system_call(444, attribute, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path, kind in readable.items():
            _allow(rules, path, rights & (_LIST if kind == "list" else _EXECUTE | _READ | _LIST))
        for path in writable:
            _allow(rules, path, rights & ~_DEVICES_AND_SOCKETS & ~_IOCTL)
        for path in devices:
            _allow(rules, path, rights & (_READ | _WRITE))
        system_call(446, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(f"/proc/self/fd/{handle}"):
            rights &= _OF_FILES
        if rights:
            system_call(445, ctypes.c_int(rules), ctypes.c_int(1), struct.pack("=Qi", rights, handle), ctypes.c_uint32(0))
    finally:
        os.close(handle)


def seccomp(code: bytes) -> None:
    """Installs a filter made by `calls.program`, for this process and all that come of it."""
    lines = ctypes.create_string_buffer(code)
    fprog = struct.pack("@HP", len(code) // 8, ctypes.addressof(lines))
    number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    system_call(number, ctypes.c_uint32(1), ctypes.c_uint32(0), fprog)


def landlock_filter(*, own_user: bool, memory_files: bool) -> bytes:
    """The filter that stands beside Landlock; `own_user` where the program keeps the uid of the user who started it."""
    return calls.program(
        platform.machine(), shared=True, signals=landlock_version() >= 6, attributes=not own_user, memory_files=memory_files
    )


def limits(*, cpu: int, address_space: int, file_size: int, open_files: int, processes: int) -> None:
    """Resource limits in seconds, bytes and numbers; an address space of 0 is left alone."""
    wanted = {
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_NPROC: processes,
    }
    wanted |= {resource.RLIMIT_CORE: 0, resource.RLIMIT_MSGQUEUE: 0, resource.RLIMIT_MEMLOCK: 1 << 16}
    if address_space:
        wanted[resource.RLIMIT_AS] = address_space
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def become(uid: int) -> None:
    """Drops every group and identity for a uid that nobody has."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
