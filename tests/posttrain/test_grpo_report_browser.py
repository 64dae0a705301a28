"""Answers of a run in a real browser: a rollout is unpacked when it is opened, and hostile text stays text."""

from __future__ import annotations

from pathlib import Path

import pytest

from rorqual.posttrain import grpo_report
from tests.posttrain.test_grpo_report import make_run
from tests.server.browser import browsing

pytestmark = pytest.mark.browser


def test_a_rollout_is_unpacked_when_it_is_opened(tmp_path: Path) -> None:
    page = grpo_report.write_report(make_run(tmp_path / "run", text="<img src=x onerror=alert(1)><b> é 深 " * 40))
    assert "onerror" not in page.read_text(encoding="utf-8")
    with browsing(tmp_path / "profile") as browser:
        browser.open(page.as_uri())
        assert browser.script("return document.querySelectorAll('#answers [data-packed]').length") == 3
        box = "document.querySelector('#rl > .tiles{}').getBoundingClientRect()"
        assert browser.script(f"return {box.format(' + *')}.top - {box.format('')}.bottom") == 16  # tiles do not touch what follows
        browser.script("document.querySelectorAll('#answers details > summary')[1].click()")
        browser.until("return document.querySelector('#answers [data-unpacked]')")
        browser.script("document.querySelector('#answers [data-unpacked] details > summary').click()")
        shown = browser.script("return document.querySelector('#answers [data-unpacked]').innerText")
        assert "question 2" in shown and "answer: 42" in shown and "<img src=x onerror=alert(1)><b> é 深 <img" in shown and "1.5" in shown
        assert browser.script("return document.querySelectorAll('#answers img').length") == 0
        assert browser.script("return document.querySelectorAll('#answers [data-packed]').length") == 2
        assert not [
            url for url in browser.asked() if url.startswith(("http:", "https:")) or (url.startswith("file:") and url != page.as_uri())
        ]
