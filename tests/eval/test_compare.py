"""Paired differences, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rorqual.errors import DataError
from rorqual.eval import compare


def _run(scores: dict[str, float], template: str = "h", **more: Any) -> dict[str, Any]:
    items = [{"id": key, "scores": {"acc": value}} for key, value in scores.items()]
    return {"model": {"name": "m"}, "tasks": {"t": {"version": 1, "template_sha256": template, "items": items, **more}}}


def test_differences_are_taken_item_by_item():
    found = compare.paired([1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0, 1.0])
    assert (found.first, found.second, found.difference, found.n) == (0.4, 0.8, pytest.approx(0.4), 5)
    assert found.stderr == pytest.approx(math.sqrt(3.2 / 4 / 5))
    assert found.low < 0 < found.high
    assert found.p == pytest.approx(2 * (1 + 4) / 16)  # three gained, one lost


def test_mcnemar():
    assert compare.mcnemar(0, 0) == 1.0 and compare.mcnemar(5, 5) == 1.0
    assert compare.mcnemar(10, 0) == pytest.approx(2 / 1024)


def test_only_common_items_and_bits_of_each_document():
    a, b = _run({"1": 1.0, "2": 0.0}), _run({"2": 1.0, "3": 0.0})
    assert compare.compare(a, b)["t"]["acc"].n == 1
    a["tasks"]["t"]["items"] = [{"id": "x", "nll": math.log(2) * 16, "bytes": 8}]
    b["tasks"]["t"]["items"] = [{"id": "x", "nll": math.log(2) * 8, "bytes": 8}]
    found = compare.compare(a, b)["t"]["bits_per_byte"]
    assert (found.first, found.second, found.p) == (pytest.approx(2.0), pytest.approx(1.0), None)


def test_the_report_says_which_is_higher():
    text = compare.report(_run({str(n): 0.0 for n in range(30)}), _run({str(n): float(n > 2) for n in range(30)}))
    assert text.splitlines()[-1].split()[-1] == "higher" and "+0.9000" in text
    assert compare.report(_run({"1": 1.0}), _run({"1": 1.0})).splitlines()[-1].endswith("=")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(DataError, match="other prompts"):
        compare.compare(_run({"1": 1.0}), _run({"1": 1.0}, template="other"))
    with pytest.raises(DataError, match="no task with common items"):
        compare.compare(_run({"1": 1.0}), _run({"2": 1.0}))
    with pytest.raises(DataError, match="paired"):
        compare.paired([1.0], [])
