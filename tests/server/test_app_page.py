"""The chat page in a real browser: an answer as it comes, stop, the tint of drafts, and nothing asked of anybody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra serve")

from tests.server.browser import Browser, browsing  # noqa: E402
from tests.server.real import Running, model_folder, running, until  # noqa: E402

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(model_folder(tmp_path_factory.mktemp("page"), max_position_embeddings=16_384), "--speculative", "1") as made:
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as made:
        yield made


def test_a_conversation(server, browser, tmp_path):
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until("return document.getElementById('model').textContent === 'tiny'")
    browser.click("#settings summary")
    for name, value in (("max_tokens", "40"), ("seed", "3"), ("temperature", "0")):
        browser.script(f"document.getElementById('{name}').value = '{value}'")
    browser.click("#tint")
    browser.type("#text", HOSTILE + "\ue007")
    browser.until("return document.body.dataset.answers === '1'")
    said = browser.script("return document.querySelector('article.assistant').innerText")
    assert "40 tokens" in said and "tokens/s" in said
    assert browser.script("return document.querySelector('article.user').textContent") == HOSTILE
    assert browser.script("return document.title") == "Rorqual"
    assert "tokens/s" in browser.script("return document.getElementById('speed').textContent")
    browser.type("#text", "and then?\ue007")
    browser.until("return document.body.dataset.answers === '2'")
    assert browser.script("return document.querySelectorAll('article').length") == 4
    where = os.environ.get("RORQUAL_PICTURES")
    assert browser.picture(Path(where) / "chat.png" if where else tmp_path / "chat.png").stat().st_size > 5000
    asked = {url for url in browser.asked() if not url.startswith(("data:", "chrome:"))}
    assert asked and all(url.startswith(f"http://127.0.0.1:{server.port}/") for url in asked), asked
    browser.click("#new")
    assert browser.script("return document.querySelectorAll('article').length") == 0


def test_stop_stops_the_server_too(server, browser):
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.until("return document.getElementById('model').textContent === 'tiny'")
    browser.script("document.getElementById('max_tokens').value = '16000'; document.getElementById('temperature').value = '0'")
    browser.type("#text", "tell me all\ue007")
    browser.until(
        "return document.querySelector('article.assistant') && document.querySelector('article.assistant').textContent.length > 20"
    )
    browser.click("#stop")
    assert until(lambda: server.figure("num_requests_running") == 0, 5) < 1
    browser.until("return !document.getElementById('send').hidden")


def test_an_error_is_shown(server, browser):
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.script("document.getElementById('max_tokens').value = '100000'")
    browser.type("#text", "hello\ue007")
    assert "context is 16384 tokens" in browser.until(
        "return document.querySelector('.error') && document.querySelector('.error').textContent"
    )
