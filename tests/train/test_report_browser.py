"""The report in a real browser: the plots are drawn, hostile text stays text, nothing is asked of the network."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from rorqual.train.report import write_report
from tests.train.fake_run import make

pytestmark = pytest.mark.browser
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
          "--disable-sync", "--hide-scrollbars", "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> str:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium found")
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make(tmp_path_factory.mktemp("browser") / "laptop", steps=100))


def browse(chromium: str, page: Path, folder: Path, *options: str) -> str:
    command = [chromium, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout


def requests(log: Path) -> set[str]:
    """Addresses that the page asked for; the browser's own calls home have no origin as initiator."""
    events = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
    asked = {params["url"] for params in events if "url" in params and params.get("initiator", "not an origin") != "not an origin"}
    return {url for url in asked if not url.startswith(("file:", "data:"))}


def test_plots_are_drawn_and_nothing_is_requested(chromium: str, report: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    page = browse(chromium, report, tmp_path, "--dump-dom", "--window-size=1280,900", f"--log-net-log={log}")
    figures = page.count('<figure class="card plot')
    assert figures == 20
    assert f'data-plots="{figures}"' in page
    assert page.count('data-drawn="lines"') == 14
    assert re.findall(r'data-drawn="heat" data-cells="(\d+)"', page) == ["1600"] * 6
    assert page.count("<svg") == 14 + 1
    assert min(int(n) for n in re.findall(r'data-curves="(\d+)"', page)) >= 1
    assert re.search(r'<path class="curve line"[^>]* d="M[\d.]+ [\d.]+L', page)
    assert "gzip −9 1.803" in page

    assert "<title>laptop · Rorqual</title>" in page
    assert "<img" not in page

    assert requests(log) == set()


def test_a_page_that_does_ask_is_noticed(chromium: str, tmp_path: Path) -> None:
    page, log = tmp_path / "page.html", tmp_path / "net.json"
    page.write_text('<img src="http://example.invalid/a.png">')
    browse(chromium, page, tmp_path, "--dump-dom", f"--log-net-log={log}")
    assert requests(log) == {"http://example.invalid/a.png"}


_HAND = """<script>
const at = (area, share) => { const box = area.getBoundingClientRect();
  return new PointerEvent("pointermove", {clientX: box.left + box.width * share, clientY: box.top + 60, bubbles: true}); };
const areas = document.querySelectorAll(".area");
areas[0].dispatchEvent(at(areas[0], 0.98));
document.body.dataset.read = document.querySelector(".tip:not([hidden])").textContent;
document.body.dataset.lines = document.querySelectorAll('.cross[visibility="visible"]').length;
document.querySelector("canvas").dispatchEvent(at(document.querySelector("canvas"), 0.999));
document.body.dataset.cell = [...document.querySelectorAll(".heat .tip:not([hidden])")].map(tip => tip.textContent).join();
document.querySelector(".legend button").click();
document.body.dataset.curves = areas[0].dataset.curves;
document.getElementById("theme").click();
</script>"""


def test_hovering_legend_and_theme(chromium: str, report: Path, tmp_path: Path) -> None:
    text = report.read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text).replace("</body>", f"{_HAND}</body>")
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    dom = browse(chromium, page, tmp_path, "--dump-dom", "--window-size=1280,900")
    seen = dict(re.findall(r'data-(\w+)="([^"]*)"', dom[dom.index("<body") : dom.index("<body") + 1000]))
    assert re.fullmatch(
        r"step 100 · 410k tokensmain \(train, smoothed\)[\d.]+MTP \(train, smoothed\)[\d.]+main, validation on code[\d.]+", seen["read"]
    )
    assert seen["lines"] == "14"
    assert re.fullmatch(r"expert \d+[\d.]+ at 410k tokens", seen["cell"])
    assert seen["curves"] == "4"
    assert '<html lang="en" data-plots="20" data-theme="dark">' in dom


def test_picture(chromium: str, report: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(report.read_text(encoding="utf-8").replace('<html lang="en">', '<html lang="en" data-theme="dark">'), encoding="utf-8")
    browse(chromium, page, tmp_path, f"--screenshot={picture}", "--window-size=500,1600")
    head = picture.read_bytes()
    assert struct.unpack(">II", head[16:24]) == (500, 1600)
    assert len(head) > 60_000
