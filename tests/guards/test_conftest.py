"""The closing summary of a test run."""

from types import SimpleNamespace

from pytest import CollectReport, TestReport

from tests.conftest import pytest_terminal_summary


def test_a_module_skipped_whole_does_not_break_the_count_of_skipped_browser_tests():
    """Its report is one of collection: before, it ended the run with a traceback wherever an extra was not installed."""
    whole = CollectReport("tests/a.py", "skipped", ("tests/a.py", 1, "Skipped: it needs an extra"), None)
    browser = TestReport("tests/b.py::test_page", ("b.py", 1, "test_page"), {"browser": 1}, "skipped", None, "setup")
    other = TestReport("tests/c.py::test_sum", ("c.py", 1, "test_sum"), {}, "skipped", None, "setup")
    lines: list[str] = []
    pytest_terminal_summary(SimpleNamespace(stats={"skipped": [whole, browser, other]}, write_line=lines.append))
    assert lines == ["browser tests skipped (no Chromium found): 1: tests/b.py::test_page"]
