"""Which mechanism there is, and whether it holds: shown by a program that tries to get out. No torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rorqual.eval.isolation import calls, confine

if TYPE_CHECKING:
    from rorqual.eval.sandbox import Sandbox

MECHANISMS = ("bubblewrap", "landlock")

# Every line must fail in a program that is held; what succeeds is named. argv holds a private file of the caller and his process.
_ESCAPES = """
import os, sys
out = []
def tried(name, what):
    try:
        what()
    except Exception:
        return
    out.append(name)
tried("reads /etc/passwd", lambda: open("/etc/passwd").read())
tried("reads a file of the user", lambda: open(sys.argv[1]).read())
tried("writes outside its folder", lambda: open("/var/tmp/rorqual-probe-%d" % os.getpid(), "x"))
tried("writes to a system folder", lambda: open("/usr/rorqual-probe", "x"))
tried("signals a process outside", lambda: os.kill(int(sys.argv[2]), 0))
import ctypes
libc = ctypes.CDLL(None)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError
tried("opens a socket", lambda: call("socket", 2, 1, 0))
tried("makes a user namespace", lambda: call("unshare", 0x10000000))
tried("traces", lambda: call("ptrace", 0, 0, 0, 0))
tried("is root", lambda: (_ for _ in ()).throw(OSError) if os.getuid() else None)
for number in range(3, 64):
    tried("keeps descriptor %d" % number, lambda: os.fstat(number))
print("held" if not out else "not held: it " + ", ".join(out))
"""


def bubblewrap() -> str | None:
    """Its path, None where it is not installed."""
    return shutil.which("bwrap")


def missing(mechanism: str) -> str:
    """What a mechanism lacks on this machine at first sight, "" if nothing."""
    if platform.system() != "Linux" or not calls.known(platform.machine()):
        return f"it needs Linux on x86-64 or aarch64, this is {platform.system()} {platform.machine()}"
    if mechanism == "bubblewrap" and bubblewrap() is None:
        return "bwrap is not installed"
    version = confine.landlock_version() if mechanism == "landlock" else 0
    if mechanism == "landlock" and version < confine.LEAST_LANDLOCK:
        return f"the kernel's Landlock has version {version} (0: off); {confine.LEAST_LANDLOCK} or newer is needed"
    return ""


def check(box: Sandbox) -> str:
    """Why a started sandbox does not hold, "" if it does."""
    with tempfile.NamedTemporaryFile() as file:
        done = box.run([*box.interpreter.command, "-c", _ESCAPES, file.name, str(os.getpid())], seconds=20)
    if done.stdout.strip() == "held":
        return ""
    return (done.stdout.strip() or done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode} {done.limit}")[:300]


def outermost(paths: Iterable[str]) -> list[str]:
    """Real paths that exist, without those below another and those below the system's folders."""
    found = sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})
    out: list[str] = []
    for path in found:
        if not any(path == one or path.startswith(one + "/") for one in (*out, "/usr")):
            out.append(path)
    return out


def detail(mechanism: str) -> str:
    """Versions, in words."""
    if mechanism == "bubblewrap":
        done = subprocess.run([bubblewrap() or "bwrap", "--version"], capture_output=True, text=True, check=False)
        return f"{done.stdout.strip()}, seccomp and resource limits"
    return f"Landlock version {confine.landlock_version()}, seccomp and resource limits"
