"""Ways out of the sandbox, each tried: as the user who runs the tests, and as an ordinary one where that is root; with every mechanism here.

Each attempt prints OUT where it got out. After all of them no process and no file is left.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from rorqual.eval.isolation.probe import MECHANISMS
from tests.eval import boxes

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534

# Name: source. {secret} is a private file of the caller, {folder} one that anybody may write to, {port} a listening server, {pid} the caller.
ATTEMPTS = {
    "reads /etc/passwd": "print(open('/etc/passwd').read()); print('OUT')",
    "reads /etc/shadow": "print(open('/etc/shadow').read()); print('OUT')",
    "reads a private file": "print(open('{secret}').read()); print('OUT')",
    "reads by another way": "import os\nfd = os.open('{secret}', os.O_PATH)\nprint(open('/proc/self/fd/%d' % fd).read()); print('OUT')",
    "lists the home": "import os\nfor p in ('/root', '/home', os.path.dirname('{secret}')):\n    try: names = os.listdir(p)\n    except OSError: continue\n    if set(names) - {{'.pyenv', '.rustup', 'main.py'}} and '.' not in names[0]: print('OUT', names)",
    "reads the package": "print(open('{package}').read()); print('OUT')",
    "reads a device": "import os, glob\nfor p in glob.glob('/dev/*'):\n    if p.split('/')[-1] in ('vda', 'sda', 'mem', 'kmem', 'kmsg', 'nvme0n1'):\n        print(open(p, 'rb').read(1)); print('OUT')",
    "writes outside": "open('{folder}/x', 'w').write('x'); print('OUT')",
    "writes to the system": "import os\nfor p in ('/usr/x', '/x', '/etc/x', '/bin/x', '/dev/x', '/var/tmp/x-rorqual', '/lib/x'):\n    try: open(p, 'w'); print('OUT', p)\n    except OSError: pass",
    "removes": "import os\nos.unlink('{folder}/keep'); print('OUT')",
    "renames": "import os\nos.rename('{folder}/keep', '{folder}/moved'); print('OUT')",
    "truncates": "import os\nos.truncate('{folder}/keep', 0); print('OUT')",
    "changes modes": "import os\nos.chmod('{folder}', 0o700); print('OUT')",
    "changes times": "import os\nos.utime('{folder}/keep', (1, 1)); print('OUT')",
    "links from outside": "import os\nos.link('{folder}/keep', 'mine'); print(open('mine').read()); print('OUT')",
    "follows a symlink": "import os\nos.symlink('{secret}', 'l'); print(open('l').read()); print('OUT')",
    "symlinks for who clears up": "import os\nos.symlink('{folder}', 'd'); os.symlink('/', 'e')",
    "mounts over itself": "import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0: print('OUT')",
    "climbs by ..": "import os\nfd = os.open('.', os.O_RDONLY)\nfor _ in range(40): fd = os.open('..', os.O_RDONLY, dir_fd=fd)\nprint(open(os.open('etc/passwd', os.O_RDONLY, dir_fd=fd)).read()); print('OUT')",
    "chroots": "import os\nos.chroot('.'); print('OUT')",
    "/proc of the parent": "import os\nfor p in ('environ', 'mem', 'cmdline', 'cwd/x', 'root/etc/passwd'):\n    try: data = open('/proc/{pid}/' + p, 'rb').read(10); print('OUT', p, data)\n    except OSError: pass",
    "/proc of process 1": "import os\nfor p in ('environ', 'mem', 'root/etc/passwd', 'root{secret}'):\n    try: data = open('/proc/1/' + p, 'rb').read(10); data and print('OUT', p, data)\n    except OSError: pass",
    "/proc of others": "import os\ntry: names = [n for n in os.listdir('/proc') if n.isdigit()]\nexcept OSError: names = []\nif len(names) > 4: print('OUT', names)",
    "own descriptors": "import os\nfor n in range(3, 40):\n    try: os.fstat(n)\n    except OSError: continue\n    path = os.readlink('/proc/self/fd/%d' % n) if os.path.exists('/proc/self/fd') else ''\n    if 'main.py' not in path: print('OUT', n, path)",
    "writes the kernel's settings": "import os\nos.write(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY), b'|/bin/sh'); print('OUT')",
    "raises its score": "import os\nos.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), b'-1000'); print('OUT')",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1); print('OUT')",
    "connects abroad": "import socket\nsocket.create_connection(('1.1.1.1', 53), 1); print('OUT')",
    "listens": "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print('OUT')",
    "sends a datagram": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', {port})); print('OUT')",
    "looks a name up": "import socket\nprint(socket.getaddrinfo('example.com', 80)); print('OUT')",
    "raw socket": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('OUT')",
    "local socket": "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('{folder}/socket'); print('OUT')",
    "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('\\0rorqual-{port}'); print('OUT')",
    "pair that sends elsewhere": "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); a.sendto(b'x', '{folder}/socket'); print('OUT')",
    "io_uring": "import ctypes\nif ctypes.CDLL(None).syscall(425, 4, ctypes.create_string_buffer(200)) >= 0: print('OUT')",
    "fork bomb": "import os\nn = 0\ntry:\n    while True:\n        n += 1\n        if os.fork() == 0:\n            while True: os.fork()\nexcept OSError: pass\nif n > 40: print('OUT', n)",
    "fork bomb in a shell": "import os\nos.execv('/bin/sh', ['sh', '-c', 'f() {{ f | f & }}; f'])",
    "threads without end": "import threading, time\nn = 0\ntry:\n    while n < 5000:\n        threading.Thread(target=time.sleep, args=(9,), daemon=True).start(); n += 1\nexcept RuntimeError: pass\nif n > 900: print('OUT', n)",
    "10 GB": "x = bytearray(10 << 30); x[::4096] = b'1' * len(x[::4096]); print('OUT')",
    "10 GB in pieces": "x = []\nwhile len(x) < 1000: x.append(bytearray(b'1') * (10 << 20))\nprint('OUT')",
    "10 GB in shared maps": "import mmap\nx = []\nwhile len(x) < 100:\n    x.append(mmap.mmap(-1, 100 << 20)); x[-1].write(b'1' * (100 << 20))\nprint('OUT')",
    "memory files": "import os\nx = []\nfor _ in range(50):\n    x.append(os.memfd_create('a'))\n    os.write(x[-1], b'1' * (15 << 20))\nprint('OUT')",
    "endless loop": "while True: pass",
    "endless loop that ignores signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "endless output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "endless output on both": "import os\nwhile True: os.write(1, b'x' * 65536); os.write(2, b'x' * 65536)",
    "huge file": "f = open('big', 'wb')\nfor _ in range(1000): f.write(bytes(1 << 20)); f.flush()\nprint('OUT')",
    "many files": "for n in range(200000): open(str(n), 'w').close()\nprint('OUT')",
    "deep folders": "import os\nfor n in range(30000):\n    os.mkdir('d'); os.chdir('d')\nprint('OUT')",
    "folders that cannot be entered": "import os\nos.makedirs('a/b/c'); open('a/b/c/f', 'w').close(); os.chmod('a/b', 0)",
    "stays after the end": "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(97.5)\n            os._exit(0)\n        os._exit(0)\nos.closerange(0, 3)",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP); print('OUT')",
    "signals the parent": "import os\nfor pid in (os.getppid(), {pid}, 1):\n    try:\n        if pid > 1: os.kill(pid, 0); print('OUT', pid)\n    except OSError: pass",
    "signals all": "import os, signal\nsignal.signal(15, signal.SIG_IGN)\nos.kill(-1, 15)",
    "priorities of others": "import os\nos.setpriority(os.PRIO_PROCESS, {pid}, 19); print('OUT')",
    "limits of others": "import resource\nresource.prlimit({pid}, resource.RLIMIT_NOFILE, (5, 5)); print('OUT')",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('OUT')",
    "setuid": "import os\nfor what in (lambda: os.setuid(0), lambda: os.setreuid(0, 0), lambda: os.setgroups([0]), lambda: os.setgid(0) if os.getgid() else 1 / 0):\n    try: what(); print('OUT')\n    except (OSError, ZeroDivisionError): pass",
    "setuid programs": "import subprocess\nfor c in (['su', '-c', 'id'], ['mount'], ['passwd', '-S']):\n    try: d = subprocess.run(c, capture_output=True, text=True, stdin=subprocess.DEVNULL)\n    except OSError: continue\n    if 'uid=0' in d.stdout: print('OUT')",
    "user namespace": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) == 0: print('OUT')",
    "other namespaces": "import ctypes\nfor f in (0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000, 0x2000000):\n    if ctypes.CDLL(None).unshare(f) == 0: print('OUT', f)",
    "namespace by clone": "import ctypes, os\nr = ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)\nif r == 0: os._exit(0)\nif r > 0: print('OUT')",
    "namespace by clone3": "import ctypes, os\na = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)\nr = ctypes.CDLL(None).syscall(435, a, 88)\nif r == 0: os._exit(0)\nif r > 0: print('OUT')",
    "ptrace": "import ctypes\nif ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0 or ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0: print('OUT')",
    "memory of others": "import ctypes\nb = ctypes.create_string_buffer(8)\nv = (ctypes.c_uint64 * 2)(ctypes.addressof(b), 8)\nif ctypes.CDLL(None).process_vm_readv({pid}, v, 1, v, 1, 0) > 0: print('OUT')",
    "bpf and perf": "import ctypes\nfor n in (321, 298, 323, 250, 248):\n    if ctypes.CDLL(None).syscall(n, 0, ctypes.create_string_buffer(128), 128, -1, 0) >= 0: print('OUT', n)",
    "32-bit calls": "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')\nprint(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()); print('OUT')",
    "terminal": "import os, fcntl\nfd = os.open('/dev/tty', os.O_RDWR); fcntl.ioctl(fd, 0x5412, b'x'); print('OUT')",
    "message queues and shared memory": "import ctypes\nlibc = ctypes.CDLL(None)\nif libc.shmget({key}, 0, 0) >= 0: print('OUT')",
    "environment": "import os\nif any('SECRET' in name for name in os.environ): print('OUT')",
}  # fmt: skip
_SLOW_ENDS = ("endless", "fork bomb", "threads", "stops itself", "shell", "files", "folders", "pieces", "maps", "abroad", "name up")


class Surroundings:
    """What an attempt could reach: a secret, a folder, servers."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self.folder, self.secret = folder / "open", folder / "secret"
        self.folder.mkdir()
        self.folder.chmod(0o777)
        self.secret.write_text("secret")
        self.secret.chmod(0o600)
        (self.folder / "keep").write_text("kept")
        (self.folder / "keep").chmod(0o666)
        os.utime(self.folder / "keep", (1000, 1000))
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.local = socket.socket(socket.AF_UNIX)
        self.local.bind(str(self.folder / "socket"))
        os.chmod(self.folder / "socket", 0o777)
        self.local.listen()
        self.port = self.tcp.getsockname()[1]
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0rorqual-{self.port}")
        self.abstract.listen()
        os.environ["RORQUAL_TEST_SECRET"] = "1"

    def source(self, text: str) -> str:
        """An attempt with its places filled in."""
        return text.format(
            secret=self.secret, folder=self.folder, port=self.port, pid=os.getpid(), package=ROOT / "rorqual/errors.py", key=4711
        )

    def unchanged(self) -> bool:
        """Whether everything is as it was."""
        keep = self.folder / "keep"
        return (
            sorted(os.listdir(self.folder)) == ["keep", "socket"] and keep.read_text() == "kept" and keep.stat().st_mtime == 1000
            and self.folder.stat().st_mode & 0o777 == 0o777
        )  # fmt: skip

    def close(self) -> None:
        """Closes the servers."""
        for one in (self.tcp, self.local, self.abstract):
            one.close()


def escape(mechanism: str, folder: Path, *, quick: bool = False) -> dict[str, str]:
    """Tries everything, or what ends at once; what got out or went wrong, by name of the attempt. Two at a time."""
    from concurrent.futures import ThreadPoolExecutor

    from rorqual.eval.sandbox import Sandbox

    around = Surroundings(folder)
    before = set(os.listdir("/tmp"))
    bad: dict[str, str] = {}
    box = Sandbox(mechanism=mechanism)

    def one(name: str) -> None:
        start = time.monotonic()
        done = box.run(around.source(ATTEMPTS[name]), seconds=1.5 if any(part in name for part in _SLOW_ENDS) else 10, memory=1 << 29)
        if "OUT" in done.stdout or "secret" in done.stdout or "root:" in done.stdout:
            bad[name] = (done.stdout + done.stderr)[-500:]
        if time.monotonic() - start > 12:
            bad[name] = f"took {time.monotonic() - start:.1f} s"
        if not quick and box.run("print(6 * 7)").stdout != "42\n":
            bad[name] = "afterwards nothing runs"

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, [name for name in ATTEMPTS if not quick or not any(part in name for part in _SLOW_ENDS)]))
    warden = box._warden
    assert warden is not None
    from rorqual.eval.isolation import processes

    deadline = time.monotonic() + 5
    while list(processes.below(warden.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if list(processes.below(warden.pid)):
        bad["processes"] = f"left: {list(processes.below(warden.pid))}"
    box.close()
    for name in os.listdir("/proc"):
        if name.isdigit() and b"97.5" in _command(name):
            bad["process"] = f"left: {_command(name)!r}"
    left = {name for name in set(os.listdir("/tmp")) - before if name.startswith("rorqual-sandbox") and f"-{warden.pid}-" in name}
    if left or not around.unchanged():
        bad["files"] = f"left: {left}, {os.listdir(around.folder)}"
    around.close()
    return bad


def _command(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_nothing_gets_out_quickly(shared_folder):
    assert escape(boxes.best().mechanism, shared_folder, quick=True) == {}


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_nothing_gets_out(mechanism, shared_folder):
    boxes.opened(mechanism)
    assert escape(mechanism, shared_folder) == {}


@pytest.fixture
def shared_folder():
    """A temporary folder that every user can get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="rorqual-escape-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_nothing_gets_out_as_an_ordinary_user(mechanism, shared_folder):
    if os.geteuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    boxes.opened(mechanism)
    os.chown(shared_folder, NOBODY, NOBODY)
    code = f"import json, sys; sys.path.insert(0, {str(ROOT)!r}); from tests.eval.test_sandbox_escape import *; from tests.eval.test_sandbox_escape import escape; print(json.dumps(escape({mechanism!r}, Path({str(shared_folder)!r}))))"
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.path.exists(path)), None)
    if python is None:
        pytest.skip("no Python outside root's home for an ordinary user")
    words = [python, "-B", "-c", _WITHOUT_PYTEST + code]
    done = subprocess.run(
        words, capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False, timeout=300
    )
    if "No module named 'rorqual'" in done.stderr:
        pytest.skip("an ordinary user cannot read this repository")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}


# The system's Python has no pytest: a module with the two names that this file uses at import stands in.
_WITHOUT_PYTEST = """
import sys, types
class Any:
    def __getattr__(self, name): return Any()
    def __call__(self, *a, **k): return a[0] if a and callable(a[0]) else Any()
pytest = types.ModuleType("pytest"); pytest.__getattr__ = lambda name: Any(); sys.modules["pytest"] = pytest
"""


def test_runs_do_not_see_each_other():
    box = boxes.best()
    out: list[str] = []
    slow = threading.Thread(
        target=lambda: out.append(box.run("open('/tmp/mine', 'w').write('x')\nimport time; time.sleep(1.2); print('unharmed')").stdout)
    )
    slow.start()
    time.sleep(0.4)
    look = "import os\nos.path.exists('/tmp/mine') and print('OUT')\nfor pid in range(2, 4000):\n    if pid != os.getpid():\n        try: os.kill(pid, 9)\n        except OSError: pass"
    assert "OUT" not in box.run(look).stdout
    slow.join()
    assert out == ["unharmed\n"] or (box.mechanism == "landlock" and out)
