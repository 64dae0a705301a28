"""Headless Chromium over the WebDriver protocol, which is plain HTTP: enough to type, click, look and take a picture."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
          "--disable-quic", "--window-size=1000,800", "--no-proxy-server"]  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Browser:
    """One window."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"], "binary": _chromium()}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}}}
        self._base = driver
        self._session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, url: str) -> None:
        """Goes to a page and waits for it."""
        self._call("POST", f"{self._session}/url", {"url": url})

    def _find(self, selector: str) -> str:
        return str(self._call("POST", f"{self._session}/element", {"using": "css selector", "value": selector})[_ELEMENT])

    def click(self, selector: str) -> None:
        """A click on the first match."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Keys into the first match; "\\ue007" is Enter."""
        self._call("POST", f"{self._session}/element/{self._find(selector)}/value", {"text": text})

    def script(self, code: str) -> Any:
        """What a piece of JavaScript returns."""
        return self._call("POST", f"{self._session}/execute/sync", {"script": code, "args": []})

    def until(self, code: str, seconds: float = 30) -> Any:
        """Waits until the piece returns something true."""
        end = time.monotonic() + seconds
        while not (value := self.script(code)):
            assert time.monotonic() < end, f"{code} did not come true; the page says: {self.script('return document.body.innerText')}"
            time.sleep(0.05)
        return value

    def picture(self, path: Path) -> Path:
        """A picture of the window as a PNG file."""
        path.write_bytes(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))
        return path

    def asked(self) -> set[str]:
        """Addresses that pages asked for since the last call."""
        events = [
            json.loads(entry["message"])["message"] for entry in self._call("POST", f"{self._session}/se/log", {"type": "performance"})
        ]
        return {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}

    def close(self) -> None:
        """Ends the window."""
        self._call("DELETE", self._session)


def _chromium() -> str:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium found")
    return path


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser for the time of a block; the test is skipped where Chromium or its driver is missing."""
    _chromium()
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver found")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, "chromedriver does not answer"
                time.sleep(0.05)
        browser = Browser(f"http://127.0.0.1:{port}", profile)
        yield browser
        browser.close()
    finally:
        process.kill()
        process.wait()
