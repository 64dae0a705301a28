"""Limits, Landlock and seccomp on a process of their own, without the rest of the sandbox."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rorqual.eval.isolation import confine


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]


def test_landlock_alone(tmp_path):
    if confine.landlock_version() < confine.LEAST_LANDLOCK:
        pytest.skip(f"the kernel's Landlock has version {confine.landlock_version()}")
    (tmp_path / "in").mkdir()
    (tmp_path / "out.txt").write_text("secret")
    code = f"""
import os, errno
from rorqual.eval.isolation import confine
confine.no_new_privileges()
confine.landlock({{"/usr": "all", "{tmp_path}": "list"}}, ["{tmp_path}/in"], ["/dev/null"])
open("{tmp_path}/in/a", "w").write("x"); open("/dev/null", "w").write("x")
print(sorted(os.listdir("{tmp_path}")), os.path.exists("/usr/bin"))
for what in (lambda: open("{tmp_path}/out.txt"), lambda: open("{tmp_path}/b", "w"), lambda: os.mkfifo("/tmp/x"), lambda: os.listdir("/"),
             lambda: os.rename("{tmp_path}/in/a", "{tmp_path}/a"), lambda: os.truncate("{tmp_path}/out.txt", 0), lambda: os.unlink("{tmp_path}/out.txt")):
    try:
        what(); print("allowed")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    said = _run(code).split("\n")
    assert said[0] == "['in', 'out.txt'] True" and len(said) >= 8 and set(said[1:8]) <= {"EACCES", "EXDEV"}


def test_seccomp_alone():
    code = """
import os, socket, platform
from rorqual.eval.isolation import calls, confine
confine.no_new_privileges()
confine.seccomp(confine.landlock_filter(own_user=True, memory_files=False))
import threading
t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1))
print(os.waitpid(os.fork() or os._exit(4), 0)[1] >> 8)
for what in (socket.socket, lambda: os.chmod("/tmp", 0o777), lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM), lambda: os.memfd_create("x")):
    try:
        what(); print("allowed")
    except OSError as error:
        print(error.errno)
"""
    assert _run(code).split("\n")[:7] == ["thread", "b'x'", "4", "1", "1", "1", "1"]


def test_limits_and_failing_calls():
    code = """
import resource
from rorqual.eval.isolation import confine
confine.limits(cpu=5, address_space=1 << 30, file_size=1 << 20, open_files=20, processes=10)
print(*(resource.getrlimit(n)[0] for n in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)))
confine.limits(cpu=9, address_space=0, file_size=1 << 30, open_files=900, processes=10)
print(resource.getrlimit(resource.RLIMIT_CPU)[1])
confine.mount("none", "/nowhere", "tmpfs", 0)
"""
    assert _run(code).split("\n") == ["5 1073741824 1048576 20 0", "5", _run(code).split("\n")[2]]
    assert "mount: " in _run(code)
