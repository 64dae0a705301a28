"""What every test runs under: one thread (make test runs one process per core), no network, reproducible random examples, and a count of what a missing browser left out.

Shapes in signatures are checked by `--jaxtyping-packages` (pyproject.toml), warnings are errors.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

import tests.shapes  # noqa: F401  (named in --jaxtyping-packages, looked up when the first package is imported)

# before anything imports torch or tokenizers, and inherited by the processes that tests start
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(TOKENIZERS_PARALLELISM="true", HF_HUB_OFFLINE="1", NO_COLOR="1", COLUMNS="140")

settings.register_profile("reproducible", deadline=None, derandomize=True, database=None)
settings.load_profile("reproducible")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names and counts the browser tests that were skipped, so that a run without a browser cannot pass for a full one."""
    names = [report.nodeid for report in terminalreporter.stats.get("skipped", []) if "browser" in report.keywords]
    if names:
        terminalreporter.write_line(f"browser tests skipped (no Chromium found): {len(names)}: {', '.join(names)}")
