"""What every test runs under: one thread (make test runs one process per core), no network, reproducible random examples, and a count of what a missing browser left out.

Shapes in signatures are checked (shapes.py; `--no-shapes` leaves that out), warnings are errors (pyproject.toml).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# before anything imports torch or tokenizers, and inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1", NO_COLOR="1", COLUMNS="140")

CHECKS = pytest.StashKey[Any]()

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the switch for tests that compile or take long."""
    parser.addoption("--no-shapes", action="store_true", help="do not check the shapes in tensor signatures")


def pytest_configure(config: pytest.Config) -> None:
    """Installs the shape checks before a test module imports the package."""
    if not config.getoption("--no-shapes"):
        from tests import shapes

        config.stash[CHECKS] = shapes.install()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out whole files of peer tests where none is wanted: their imports take seconds in each process."""
    return True if collection_path.name.endswith("_peer.py") and "not peer" in config.option.markexpr else None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Each test checks the first calls of every function anew."""
    if CHECKS in item.config.stash:
        item.config.stash[CHECKS].calls.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names and counts the browser tests that were skipped, so that a run without a browser cannot pass for a full one."""
    # a module that skips itself whole leaves a report of its collection, which has no keywords
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if isinstance(report, pytest.TestReport)]
    names = [report.nodeid for report in skipped if "browser" in report.keywords]
    if names:
        terminalreporter.write_line(f"browser tests skipped (no Chromium found): {len(names)}: {', '.join(names)}")
