"""The process that starts runs. It is small, so starting one from it is quick, and it holds nothing of the caller's memory. No torch.

    caller ── a socket per run, passed over the control socket ──> warden ── fork ──> supervise.serve ── fork, exec ──> the program

It ends when the control socket is closed, which happens at the latest when the caller ends.
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import signal
import socket
import sys
import tempfile
import traceback

from rorqual.eval.isolation import bubblewrap, cgroup, confine, launch, staging, supervise
from rorqual.eval.isolation.settings import Settings, allowed


def main() -> None:
    """Serves the control socket at descriptor `sys.argv[1]`; settings are the JSON object in `sys.argv[2]`."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    settings = Settings(**json.loads(sys.argv[2]))
    folder = ""
    try:
        while (spare := os.open("/dev/null", os.O_RDWR)) < 10:  # descriptors 0 to 9 stay free for programs
            pass
        os.close(spare)
        os.umask(0o022)
        if settings.drop:
            staging.stage([*settings.readable, sys.base_prefix, *filter(None, [settings.bwrap])])
        if settings.mechanism == "landlock":
            folder = _base(settings.base)
            roots = [*bubblewrap.SYSTEM, *bubblewrap.ETC, *settings.readable]
            settings = dataclasses.replace(settings, base=folder, allowed=allowed(roots, settings.hidden))
        if settings.groups:
            cgroup.clear(settings.groups)
        control.send(b"ready")
    except OSError as error:
        control.send(f"{type(error).__name__}: {error}".encode())
        return
    try:
        _serve(control, settings)
    finally:
        if folder:
            launch.remove(folder)


def _serve(control: socket.socket, settings: Settings) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended runs are collected by the system
    while True:
        data, ancillary, _, _ = control.recvmsg(16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                asker = socket.socket(fileno=array.array("i", value)[0])
                if os.fork() == 0:
                    _run(control, asker, settings)
                asker.close()


def _run(control: socket.socket, asker: socket.socket, settings: Settings) -> None:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        confine.adopt_orphans()
        supervise.serve(asker, settings)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _base(parent: str) -> str:
    """A folder for work folders that others can enter but not list; what ended wardens of this user left is removed."""
    for name in os.listdir(parent):
        parts = name.split("-")
        if name.startswith("rorqual-sandbox-") and len(parts) == 4 and parts[2].isdigit() and not os.path.exists(f"/proc/{parts[2]}"):
            path = f"{parent}/{name}"
            if os.lstat(path).st_uid == os.getuid():
                launch.remove(path)
    folder = tempfile.mkdtemp(prefix=f"rorqual-sandbox-{os.getpid()}-", dir=parent)
    os.chmod(folder, 0o711)
    return folder
