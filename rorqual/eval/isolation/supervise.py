"""One run, in a process of its own: starts the programs, watches them, ends everything they started, and clears up. No torch.

It runs as the user who started Rorqual (root where that was root), holds no secret, and adopts every orphan below it, so no process can get
out of reach by forking away. It ends with the run, or when the asker is gone.
"""

from __future__ import annotations

import base64
import json
import resource
import select
import signal
import socket
import struct
import time
from typing import Any

from rorqual.eval.isolation import processes
from rorqual.eval.isolation.launch import Launched, launch
from rorqual.eval.isolation.settings import Settings

_TICK = 0.02


def serve(asker: socket.socket, settings: Settings) -> None:
    """Reads one request, runs it, answers it."""
    size = struct.unpack("=Q", exactly(asker, 8))[0]
    request = json.loads(exactly(asker, size))
    try:
        answer: dict[str, Any] = run(request, settings, asker)
    except OSError as error:
        answer = {"error": str(error)}
    body = json.dumps(answer).encode()
    asker.sendall(struct.pack("=Q", len(body)) + body)


def exactly(stream: socket.socket, count: int) -> bytes:
    """That many bytes of a stream; EOFError where it ends before."""
    parts = bytearray()
    while len(parts) < count:
        part = stream.recv(min(1 << 20, count - len(parts)))
        if not part:
            raise EOFError("the other side is gone")
        parts += part
    return bytes(parts)


def run(request: dict[str, Any], settings: Settings, asker: socket.socket) -> dict[str, Any]:
    """Results of the request's programs. The first one's end is the end; a second one, joined to it by a socket at 3, is ended with it."""
    wanted = request["programs"]
    ends: list[socket.socket | None] = [None, None]
    if len(wanted) == 2:
        ends = list(socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
    running: list[Launched] = []
    try:
        for index, program in enumerate(wanted):
            running.append(launch(program, settings, index, ends[index]))
        for end in ends:
            if end is not None:
                end.close()
        _watch(running, request, asker)
    finally:
        ended = processes.end_all()
        results = [_finished(one, ended) for one in running]
        for one in running:
            one.clear()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"programs": results, "cpu": sum(one.ru_utime + one.ru_stime for one in used)}


def _watch(running: list[Launched], request: dict[str, Any], asker: socket.socket) -> None:
    """Returns when the first program has ended or one has broken a limit."""
    poll = select.poll()
    poll.register(asker, select.POLLIN | select.POLLHUP)
    sources: dict[int, tuple[Launched, int]] = {}
    for one in running:
        for number, handle in enumerate(one.outputs):
            poll.register(handle, select.POLLIN)
            sources[handle] = (one, number)
        poll.register(one.pidfd, select.POLLIN)
    main = running[0]
    end = main.started + request["seconds"]
    looked = main.started
    while True:
        now = time.monotonic()
        if now >= end:
            for one in running:
                one.limit = one.limit or "seconds"
            return
        found = poll.poll(max(1, min(end - now, _TICK) * 1000))
        for handle, event in found:
            if handle == asker.fileno():
                return
            if handle in sources:
                one, number = sources[handle]
                if not one.read(number):
                    poll.unregister(handle)
            elif handle == main.pidfd:
                return
            elif event:
                poll.unregister(handle)
        if time.monotonic() - looked >= _TICK:
            looked = time.monotonic()
            for one in running:
                one.look()
        if any(one.limit for one in running):
            return


def _finished(one: Launched, ended: dict[int, int]) -> dict[str, Any]:
    one.drain()
    one.settle()
    status = one.status(ended)
    limit = one.limit
    if not limit and status == -signal.SIGXCPU:
        limit = "cpu"
    if not limit and status == -signal.SIGXFSZ:
        limit = "file_size"
    return {
        "returncode": status,
        "limit": limit,
        "stdout": _packed(one.texts[0]),
        "stderr": _packed(one.texts[1]),
        "fault": one.fault(ended),
    }


def _packed(text: bytes | bytearray) -> str:
    return base64.b64encode(text).decode()
