"""Escaping, the pieces, and that the document asks for nothing outside itself."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rorqual.errors import RunError
from rorqual.html.page import (
    Html,
    Section,
    bars,
    clean,
    document,
    escape,
    folded,
    gap,
    hero,
    join,
    packed,
    pairs,
    stack,
    table,
    tag,
    tile,
    write,
)

HOSTILE = "</script><script>alert(1)</script>\"'&\u202e\x00\ud800"


class _Outline(HTMLParser):
    """Counts tags, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "link", "br", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<b>", Html("<b></b>"), None) == "<p>&lt;b&gt;<b></b></p>"
    assert join(["a<", tag("i", 3)]) == "a&lt;<i>3</i>"
    assert tag("a", "x", href='"><script>', class_="c", data_n=1, hidden=True, open=False, title=None) == (
        '<a href="&quot;&gt;&lt;script&gt;" class="c" data-n="1" hidden>x</a>'
    )
    assert isinstance(escape("x"), Html)


def test_invisible_characters_become_visible() -> None:
    assert clean("a\x00b\x1b\x7f\r\n\t") == "a␀b␛␡␍\n\t"
    assert clean("\u202eabc\u2066\ud800") == "\ufffdabc\ufffd\ufffd"
    escape(HOSTILE).encode("utf-8")


def test_pieces_escape_what_they_are_given() -> None:
    for piece in (
        tile(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        hero(HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        gap(HOSTILE, HOSTILE),
        table((HOSTILE,), [(HOSTILE,)], numeric=(0,)),
        pairs([(HOSTILE, HOSTILE)]),
        bars([(HOSTILE, 1.0, HOSTILE)], accent=0),
        stack([(HOSTILE, 1.0, HOSTILE)]),
    ):
        assert "<script" not in piece
        assert "\x00" not in piece


def test_bars_and_stack_are_to_scale() -> None:
    assert re.findall(r"width:([\d.]+)%", bars([("a", 2.0, ""), ("b", 1.0, ""), ("c", 0.0, "")])) == ["100.00", "50.00", "0.40"]
    assert re.findall(r"flex-grow:([\d.]+)", stack([("a", 3.0, ""), ("b", 1.0, "")])) == ["0.7500", "0.2500"]
    assert "<em>75%</em>" in stack([("a", 3.0, ""), ("b", 1.0, "")])
    assert bars([]) and stack([])


def test_document_nests_and_needs_nothing_from_outside() -> None:
    text = document(
        HOSTILE, [Section("one", "One", tag("p", "body"), lead="lead"), Section("two", "Two", gap("x", "y"))], "kicker", "sub", "foot"
    )
    outline = _Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.seen.count("section") == 2
    assert outline.seen.count("script") == 1
    assert '<a href="#two">Two</a>' in text
    assert not re.search(r'(src|href)="(?!#|data:,)', text.split("<style>")[0] + text.split("</style>")[1].split("<script>")[0])
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|fetch\(|XMLHttpRequest", text)


def test_policy_allows_the_pages_own_script_only() -> None:
    text = document("t", [])
    script = re.search(r"<script>(.*)</script>", text, re.S)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_write_is_atomic(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write(target, "one")
    write(target, "two")
    assert target.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(RunError, match="could not write"):
        write(tmp_path / "absent" / "page.html", "x")


def test_packed_content_is_the_folded_one_compressed() -> None:
    short = packed("three", tag("p", HOSTILE))
    assert short == folded("three", tag("p", HOSTILE))
    long = packed(HOSTILE, "<" * 5000, tag("i", "é"))
    found = re.search(r'<div data-packed="([A-Za-z0-9+/=]+)">', long)
    assert found and zlib.decompress(base64.b64decode(found[1])).decode() == "&lt;" * 5000 + "<i>é</i>"
    assert long.startswith("<details><summary>&lt;/script&gt;") and len(long) < 600
