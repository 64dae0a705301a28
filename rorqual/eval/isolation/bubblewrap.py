"""The command line of bubblewrap: a new root of system files read-only, an own /tmp, no network, no other process in sight. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
ETC = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/ssl/openssl.cnf",
    "/etc/java-17-openjdk",
    "/etc/java-21-openjdk",
    "/etc/php",
    "/etc/mono",
)
WORK = "/tmp"


def arguments(
    program: str, *, readable: Iterable[str], hidden: Iterable[str], files: Mapping[str, int], folders: Iterable[str], disk: int,
    environment: Mapping[str, str], seccomp: int, report: int, argv: Sequence[str],
) -> list[str]:  # fmt: skip
    """The whole command. `files` maps names in the work folder to open descriptors, `disk` are the bytes of the work folder;
    `seccomp` holds the filter, and to `report` bubblewrap writes how the program ended.

    `readable` are folders beside the system's (an interpreter, a toolchain), `hidden` are folders inside them that show empty.
    """
    out = [program, "--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    out += ["--disable-userns", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "box", "--clearenv"]
    out += ["--json-status-fd", str(report)]
    for path in SYSTEM:
        if os.path.islink(path):
            out += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            out += ["--ro-bind", path, path]
    for path in ETC:
        out += ["--ro-bind-try", path, path]
    for path in readable:
        out += ["--ro-bind", path, path]
    for path in hidden:
        out += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    out += ["--proc", "/proc", "--dev", "/dev", "--size", str(max(1 << 20, disk // 4)), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    out += ["--size", str(disk), "--tmpfs", WORK]
    for name in folders:
        out += ["--dir", f"{WORK}/{name}"]
    for name, handle in files.items():
        out += ["--file", str(handle), f"{WORK}/{name}"]
    for name, value in environment.items():
        out += ["--setenv", name, value]
    return [*out, "--remount-ro", "/", "--chdir", WORK, "--seccomp", str(seccomp), "--", *argv]
