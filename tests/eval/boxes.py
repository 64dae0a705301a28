"""Sandboxes for tests: one per mechanism that this machine has, opened once; tests are skipped by name where there is none."""

from __future__ import annotations

import functools

import pytest

from rorqual.errors import DeviceError
from rorqual.eval.isolation.probe import MECHANISMS
from rorqual.eval.sandbox import Sandbox


@functools.cache
def _opened(mechanism: str) -> Sandbox | str:
    try:
        return Sandbox(mechanism=mechanism)
    except DeviceError as error:
        return str(error)


def opened(mechanism: str) -> Sandbox:
    """The sandbox of a mechanism; the test is skipped with the reason where it does not hold here."""
    found = _opened(mechanism)
    if isinstance(found, str):
        pytest.skip(f"no {mechanism}: {found}")
    return found


def best() -> Sandbox:
    """The first mechanism that holds."""
    for name in MECHANISMS:
        found = _opened(name)
        if not isinstance(found, str):
            return found
    pytest.skip(f"no sandbox: {_opened(MECHANISMS[-1])}")
