"""The system-call filter as a program: what it answers, by interpreting it, on both architectures."""

from __future__ import annotations

import struct

import pytest

from rorqual.eval.isolation import calls

_OPTIONS = {"shared": True, "signals": False, "attributes": False, "memory_files": False}
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50026


def _answer(code: bytes, arch: int, number: int, *arguments: int) -> int:
    data = struct.pack("=IIQ6Q", number, arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6])
    lines, at, held = [struct.unpack("=HBBI", code[start : start + 8]) for start in range(0, len(code), 8)], 0, 0
    while True:
        operation, yes, no, value = lines[at]
        at += 1
        if operation == 0x20:
            held = struct.unpack("=I", data[value : value + 4])[0]
        elif operation == 0x54:
            held &= value
        elif operation == 0x06:
            return value
        else:
            held_true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[operation]
            at += yes if held_true else no


@pytest.mark.parametrize(("machine", "arch", "read", "ptrace", "clone", "socketpair", "prlimit", "kill", "memfd", "utimensat"), [
    ("x86_64", 0xC000003E, 0, 101, 56, 53, 302, 62, 319, 280), ("aarch64", 0xC00000B7, 63, 117, 220, 199, 261, 129, 279, 88),
])  # fmt: skip
def test_answers(machine, arch, read, ptrace, clone, socketpair, prlimit, kill, memfd, utimensat):
    strict = calls.program(machine, **_OPTIONS)
    open_ = calls.program(machine, shared=False, signals=True, attributes=True, memory_files=True)
    for code in (strict, open_):
        assert _answer(code, arch, read) == _ALLOW and _answer(code, 0x40000003, 4) == _KILL
        assert _answer(code, arch, ptrace) == _EPERM and _answer(code, arch, 435) == _ENOSYS and _answer(code, arch, 463) == _ENOSYS
        assert _answer(code, arch, clone, 0x3D0F00) == _ALLOW and _answer(code, arch, clone, 0x10000011) == _EPERM
        assert _answer(code, arch, socketpair, 1, 0x80001) == _ALLOW and _answer(code, arch, socketpair, 1, 5) == _ALLOW
        assert _answer(code, arch, socketpair, 1, 2) == _EPERM and _answer(code, arch, socketpair, 2, 1) == _EPERM
    assert _answer(strict, arch, prlimit, 0) == _ALLOW and _answer(strict, arch, prlimit, 1) == _EPERM
    for number in (kill, memfd, utimensat):
        assert (_answer(strict, arch, number), _answer(open_, arch, number)) == (_EPERM, _ALLOW)
    assert _answer(open_, arch, prlimit, 1) == _ALLOW


def test_x32_numbers_end_the_process():
    assert _answer(calls.program("x86_64", **_OPTIONS), 0xC000003E, 0x40000000 | 101) == _KILL


def test_known_machines():
    assert calls.known("x86_64") and not calls.known("riscv64")
