"""Runs generated code where it can do no harm: `Sandbox().run("print(1)")`. No torch.

    box = Sandbox()                                                     # DeviceError where this machine has nothing that holds
    box.run("print(input())", stdin="hello").stdout                     # "hello\\n": source of a Python program
    box.run(["python3", "main.py"], files={"main.py": "print(1)"})      # or a command, in a folder with these files
    box.run(source, language="java", seconds=20)                        # other languages where their tools are installed
    box.run(source, seconds=2, memory=1 << 28)                          # Result(returncode, stdout, stderr, timed_out, limit)

A program sees no network, no file of the user's, no other process, an own temporary folder; its CPU and wall time, memory, processes, open
files, output and files are limited; it has a uid of its own where Rorqual was started as root. Held by bubblewrap where it works, else by
Landlock and seccomp, else nothing is run. Safe to use from several threads at once: each run has its own processes.
docs/sandbox.md says what is held and how.
"""

from __future__ import annotations

import array
import base64
import contextlib
import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError, DeviceError
from rorqual.eval.isolation import cgroup, languages, probe
from rorqual.eval.isolation.settings import Settings
from rorqual.eval.isolation.supervise import exactly

_ROOT = Path(__file__).resolve().parents[2]
_START = "import sys; sys.path.insert(0, sys.argv.pop()); from rorqual.eval.isolation.warden import main; main()"
_GRACE = 20.0


@dataclass(frozen=True)
class Limits:
    """What one program may use. Bytes and seconds; `disk` is all of its work folder, `file_size` one file, `output` each of stdout and stderr."""

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 32
    open_files: int = 64
    output: int = 1 << 20
    file_size: int = 16 << 20
    disk: int = 64 << 20


@dataclass(frozen=True)
class Result:
    """How a program ended. `returncode` is minus the signal's number for one that was ended by a signal.

    `limit` names the limit that ended it: "seconds", "memory", "processes", "output", "disk", "cpu", "file_size", or "" for none. A Python
    program that asks for too much memory gets MemoryError, and a fork too many BlockingIOError; those are no broken limits.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    limit: str
    cpu: float = 0.0
    """CPU seconds of the whole run: programs, all that they started, and their confinement."""


@dataclass(frozen=True)
class Program:
    """A program to be run: a command, its files and input. Strings are UTF-8."""

    argv: Sequence[str]
    files: Mapping[str, bytes | str] = dataclasses.field(default_factory=dict)
    stdin: bytes | str = ""
    limits: Limits = dataclasses.field(default_factory=Limits)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    watched: bool = False
    """Whether memory is limited by watching resident size alone, for what reserves far more address space than it uses (JVM, Node)."""


class Sandbox:
    """Runs programs apart from everything. `limits` hold where `run` names no others; `mechanism` is chosen ("" for the best that works).

    `tools` are folders of toolchains and caches that programs may read, beside those of the languages known here. `cpu` sums the CPU seconds of
    all runs so far.
    """

    def __init__(self, limits: Limits | None = None, *, mechanism: str = "", tools: Sequence[str | Path] = ()) -> None:
        if mechanism not in ("", *probe.MECHANISMS):
            raise ConfigError(f"mechanism is {mechanism!r}; it must be {' or '.join(probe.MECHANISMS)}")
        self.limits = limits or Limits()
        self.cpu = 0.0
        self._lock = threading.Lock()
        self._warden: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._tools = [os.path.realpath(path) for path in tools]
        reasons = []
        for name in [mechanism] if mechanism else probe.MECHANISMS:
            for interpreter in languages.interpreters():
                reason = self._try(name, interpreter)
                if not reason:
                    return
                reasons.append(f"{name}: {reason}")
        raise DeviceError(
            f"generated code cannot be run here: no sandbox holds ({'; '.join(dict.fromkeys(reasons))}). Install bubblewrap, on a kernel that "
            "allows user namespaces, or use Linux 6.2 or newer with Landlock; nothing is run without one"
        )

    def _try(self, mechanism: str, interpreter: languages.Interpreter) -> str:
        """Starts a warden and has it show that it holds; why it does not, "" if it does."""
        reason = probe.missing(mechanism)
        if reason:
            return reason
        self.mechanism, self.interpreter = mechanism, interpreter
        readable = [*interpreter.folders, *languages.folders(), *self._tools]
        groups, version = cgroup.find()
        self._settings = Settings(
            mechanism=mechanism, drop=os.geteuid() == 0, bwrap=probe.bubblewrap() or "", readable=probe.outermost(readable), hidden=list(interpreter.hidden),
            groups=groups, groups_version=version,
        )  # fmt: skip
        try:
            reason = probe.check(self)
        except DeviceError as error:
            reason = str(error)
        if reason:
            self.close()
        return reason

    # ------------------------------------------------------------------ runs

    def run(
        self, code: str | Sequence[str], files: Mapping[str, bytes | str] | None = None, stdin: bytes | str = "", seconds: float | None = None,
        memory: int | None = None, language: str = "python", limits: Limits | None = None,
    ) -> Result:  # fmt: skip
        """Runs source text in `language`, or a command (a list of words), in a fresh folder that holds `files`.

        Files are named by paths below the folder. Source stands there as `languages.LANGUAGES[language].file`. DeviceError where the
        language's tools are not installed, or where the sandbox fails; what the program does is never an error.
        """
        return self.run_programs([self.program(code, files, stdin, seconds, memory, language, limits)])[0]

    def program(
        self, code: str | Sequence[str], files: Mapping[str, bytes | str] | None = None, stdin: bytes | str = "", seconds: float | None = None,
        memory: int | None = None, language: str = "python", limits: Limits | None = None,
    ) -> Program:  # fmt: skip
        """What `run` would run."""
        chosen = languages.language(language)
        allowed = limits or chosen.limits(self.limits)
        allowed = dataclasses.replace(allowed, seconds=seconds or allowed.seconds, memory=memory or allowed.memory)
        files = dict(files or {})
        if isinstance(code, str):
            files[chosen.file] = code
            argv = chosen.command(self.interpreter)
        else:
            argv = list(code)
            if argv[:1] in (["python"], ["python3"]):
                argv = [*self.interpreter.command, *argv[1:]]
        return Program(argv, files, stdin, allowed, chosen.environment(), chosen.watched)

    def run_programs(self, programs: Sequence[Program]) -> list[Result]:
        """Runs one program, or two that are joined by a socket (descriptor 3 of both); the first one's end is the end of both."""
        if not 1 <= len(programs) <= 2:
            raise ConfigError(f"{len(programs)} programs; one or two can be run together")
        seconds = programs[0].limits.seconds
        body = json.dumps({"seconds": seconds, "programs": [_packed(one) for one in programs]}).encode()
        answer = self._ask(body, seconds)
        if "error" in answer:
            raise DeviceError(f"the sandbox could not run a program: {answer['error']}")
        for one in answer["programs"]:
            if one["fault"]:
                raise DeviceError(f"the sandbox could not start a program: {one['fault']}")
        with self._lock:
            self.cpu += answer["cpu"]
        return [
            Result(one["returncode"], _text(one["stdout"]), _text(one["stderr"]), one["limit"] == "seconds", one["limit"], answer["cpu"])
            for one in answer["programs"]
        ]

    def describe(self) -> dict[str, Any]:
        """What holds, which Python runs candidates, whether they get a uid of their own, how memory is held, which languages there are."""
        return {
            "mechanism": self.mechanism,
            "detail": probe.detail(self.mechanism),
            "own_uid": self._settings.drop,
            "memory": f"cgroup version {self._settings.groups_version}, and watched" if self._settings.groups else "watched",
            "python": self.interpreter.command[0],
            "languages": languages.installed(),
        }

    def close(self) -> None:
        """Ends the warden and its runs; a later run starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._stop()

    # ------------------------------------------------------------------ the warden

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._warden is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._warden.wait(10)
        self._control = self._warden = None

    def _started(self) -> socket.socket:
        """The control socket; starts the warden where there is none, or where it has ended. Under the lock."""
        if self._control is not None and self._warden is not None and self._warden.poll() is None:
            return self._control
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [
            sys.executable,
            "-I",
            "-S",
            "-B",
            "-c",
            _START,
            str(theirs.fileno()),
            json.dumps(dataclasses.asdict(self._settings)),
            str(_ROOT),
        ]
        self._warden = subprocess.Popen(
            words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True, env={"PATH": os.defpath}, cwd="/",
        )  # fmt: skip
        theirs.close()
        self._control = ours
        ours.settimeout(60)
        said = ours.recv(4096)
        if said != b"ready":
            self._stop()
            raise DeviceError(
                f"the process that runs sandboxed programs did not start: {said.decode(errors='replace') or 'it ended at once'}"
            )
        return ours

    def _ask(self, body: bytes, seconds: float) -> dict[str, Any]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours:
            with theirs:
                with self._lock:
                    control = self._started()
                    try:
                        control.sendmsg([b"run"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [theirs.fileno()]))])
                    except OSError as error:
                        raise DeviceError(f"the process that runs sandboxed programs is gone: {error}") from None
            ours.settimeout(seconds + _GRACE)
            try:
                ours.sendall(struct.pack("=Q", len(body)) + body)
                size = struct.unpack("=Q", exactly(ours, 8))[0]
                found: dict[str, Any] = json.loads(exactly(ours, size))
            except (OSError, EOFError) as error:
                raise DeviceError(f"a sandboxed run gave no answer: {error or type(error).__name__}") from None
        return found


def _packed(one: Program) -> dict[str, Any]:
    limits = one.limits
    for name in one.files:
        if not name or name.startswith("/") or ".." in name.split("/") or "" in name.split("/"):
            raise ConfigError(f"file name {name!r} must be a path below the work folder, without '..'")
    return {
        "argv": list(one.argv), "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "{work}", "TMPDIR": "{work}", "LANG": "C.UTF-8", **one.environment},
        "files": {name: base64.b64encode(_bytes(text)).decode() for name, text in one.files.items()},
        "stdin": base64.b64encode(_bytes(one.stdin)).decode(), "memory": limits.memory, "address_space": 0 if one.watched else limits.memory,
        "processes": limits.processes, "open_files": limits.open_files, "output": limits.output, "file_size": limits.file_size, "disk": limits.disk,
        "cpu": max(1, int(limits.seconds) + 1), "memory_files": one.watched,
    }  # fmt: skip


def _bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text


def _text(packed: str) -> str:
    return base64.b64decode(packed).decode("utf-8", "replace")
