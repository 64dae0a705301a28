"""One self-contained HTML page: markup that escapes by default, layout pieces, the document around them.

No CDN, no web font, no request of any kind: style and script are embedded, and a Content-Security-Policy in the page forbids the rest,
so that text written by a model or found in a corpus stays text even if an escape were forgotten. `Html` marks markup as safe;
every other string that enters `tag` is escaped and cleaned of control, direction-changing and unpaired-surrogate characters.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rorqual.errors import RunError

_FOLDER = Path(__file__).parent
_VOID = ("br", "hr", "img", "link", "meta", "input")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f]")
_TURNING = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\ud800-\udfff\ufffe\uffff]")


class Html(str):
    """Markup that needs no escaping."""

    __slots__ = ()


def clean(text: str) -> str:
    """Text without characters that hide or reorder what stands beside them: controls become their pictures, the rest U+FFFD."""
    text = _CONTROL.sub(lambda found: chr(0x2421 if found[0] == "\x7f" else 0x2400 + ord(found[0])), text)
    return _TURNING.sub("\ufffd", text)


def escape(value: object) -> Html:
    """Any value as safe markup; `Html` passes as it is."""
    return value if isinstance(value, Html) else Html(html.escape(clean(str(value)), quote=True))


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element. Children and attribute values are escaped; None and False are left out; `class_` and `data_x` become class and data-x."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(clean(str(value)), quote=True)}"')
    opening = f"<{' '.join(words)}>"
    if name in _VOID:
        return Html(opening)
    return Html(f"{opening}{''.join(escape(child) for child in children if child is not None)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other, escaped where needed."""
    return Html("".join(escape(part) for part in parts if part is not None))


# ---------------------------------------------------------------------- pieces


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the navigation."""

    id: str
    title: str
    body: Html
    lead: str = ""


def tile(label: str, value: str, note: str = "", unit: str = "") -> Html:
    """A headline figure."""
    number = tag("span", value, tag("small", f" {unit}") if unit else None, class_="value")
    return tag("div", tag("span", label, class_="label"), number, tag("span", note, class_="note") if note else None, class_="tile")


def hero(label: str, value: str, unit: str, note: str, *more: object) -> Html:
    """The first and largest headline figure, with room for a small comparison."""
    number = tag("span", value, tag("small", f" {unit}"), class_="value")
    top = tag("div", tag("span", label, class_="label"), tag("div", number), tag("span", note, class_="note"))
    return tag("div", top, *more, class_="tile hero")


def missing_tile(label: str, key: str, file: str, large: bool = False) -> Html:
    """A headline figure that the run does not have, by name; `large` in the place of a hero."""
    note = tag("span", tag("code", key), f" is not in {file}", class_="note")
    return tag(
        "div", tag("span", label, class_="label"), tag("span", "–", class_="value"), note, class_="tile hero gap" if large else "tile gap"
    )


def gap(title: str, what: str) -> Html:
    """Stands where a plot or table would be, and says what is missing."""
    return tag("div", tag("h3", title), tag("p", what), class_="card gap", data_gap=title)


def card(title: str, *body: object, wide: bool = False) -> Html:
    """A titled box."""
    return tag("div", tag("h3", title), *body, class_="card wide" if wide else "card")


def grid(*cards: object) -> Html:
    """Boxes side by side where the window is wide enough."""
    return tag("div", *cards, class_="grid")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], numeric: Sequence[int] = ()) -> Html:
    """A table; columns listed in `numeric` are right-aligned. Scrolls sideways inside its box on narrow screens."""

    def cells(kind: str, row: Sequence[object]) -> list[Html]:
        return [tag(kind, cell, class_="number" if i in numeric else None) for i, cell in enumerate(row)]

    top = tag("thead", tag("tr", *cells("th", head))) if any(head) else None
    return tag("div", tag("table", top, tag("tbody", *(tag("tr", *cells("td", row)) for row in rows))), class_="scroll", tabindex="0")


def pairs(rows: Iterable[tuple[object, object]]) -> Html:
    """Names and values in two columns."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in rows), class_="pairs")


def folded(summary: object, *body: object, open_: bool = False) -> Html:
    """Content that opens on a click."""
    return tag("details", tag("summary", summary), *body, open=open_)


def packed(summary: object, *body: object, least: int = 4096) -> Html:
    """Content that opens on a click and is kept compressed until then (zlib in base64), where it has at least `least` characters.

    The page's script unpacks it in the browser; what was escaped before stays text.
    """
    whole = join(body)
    if len(whole) < least:
        return folded(summary, whole)
    data = base64.b64encode(zlib.compress(whole.encode("utf-8"), 9)).decode("ascii")
    return folded(summary, tag("div", "The script of this page unpacks what stands here.", data_packed=data))


def bars(rows: Sequence[tuple[str, float, str]], accent: int = -1, top: float | None = None) -> Html:
    """Horizontal bars (name, length, label) on one scale from zero to `top`, or to the longest; row `accent` is drawn in the page's colour."""
    top = top or max((length for _, length, _ in rows), default=0.0) or 1.0
    items = []
    for i, (name, length, label) in enumerate(rows):
        bar = tag("i", style=f"width:{max(0.4, 100 * length / top):.2f}%")
        items.append(tag("div", tag("span", name), tag("b", bar), tag("em", label), class_="accent" if i == accent else None))
    return tag("div", *items, class_="bars")


def stack(parts: Sequence[tuple[str, float, str]]) -> Html:
    """One bar cut into (name, length, label), with a legend underneath: where a total goes."""
    total = sum(length for _, length, _ in parts) or 1.0
    cuts, names = [], []
    for i, (name, length, label) in enumerate(parts):
        colour = f"--c:var(--c{i % 6 + 1})"
        cuts.append(tag("i", style=f"{colour};flex-grow:{max(length / total, 0.002):.4f}", title=f"{name}: {label}"))
        share = f"{100 * length / total:.0f}%" if length >= total * 0.01 else "<1%"
        names.append(tag("li", tag("i", style=colour), tag("span", name), tag("b", label), tag("em", share)))
    return tag("div", tag("div", *cuts, class_="cuts"), tag("ul", *names), class_="stack")


# ---------------------------------------------------------------------- document


def document(title: str, sections: Sequence[Section], kicker: str = "", subtitle: object = "", footer: object = "") -> str:
    """The whole page, ready to be written; nothing in it points outside."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · Rorqual"),
        tag("link", rel="icon", href="data:,"),
        Html(f"<style>\n{style}</style>"),
    )
    links = [tag("a", section.title, href=f"#{section.id}") for section in sections]
    theme = tag("button", "Dark", id="theme", type="button", title="Switch between the light and the dark theme")
    bar = tag("div", tag("a", _mark(), "Rorqual", href="#top", class_="mark"), tag("nav", *links), theme, class_="bar")
    top = tag(
        "header",
        tag("p", kicker, class_="kicker") if kicker else None,
        tag("h1", title),
        tag("p", subtitle, class_="subtitle") if subtitle else None,
        id="top",
    )
    body = [
        tag(
            "section",
            tag("h2", section.title),
            tag("p", section.lead, class_="lead") if section.lead else None,
            section.body,
            id=section.id,
        )
        for section in sections
    ]
    nojs = tag(
        "noscript",
        tag(
            "p",
            "Plots are drawn and long texts unpacked by a script inside this page; switch JavaScript on to see them.",
            class_="card gap",
        ),
    )
    end = tag("footer", footer) if footer else None
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{bar}\n<main>\n{join([top, nojs, *body, end])}\n</main>\n<script>{script}</script>\n</body>\n</html>\n'


def _mark() -> Html:
    """The project's sign: a back and a fluke above the water."""
    return Html(
        '<svg viewBox="0 0 32 20" width="32" height="20" aria-hidden="true"><path d="M1 14c5 0 6-8 14-8 6 0 8 6 11 6 2 0 2-3 1-6 1 1 2 1.500 4 1.500'
        '-1 4-3 7.500-7 7.500H4" fill="currentColor"/><path d="M1 18.500c3 0 3-1.500 6-1.500s3 1.500 6 1.500 3-1.500 6-1.500 3 1.500 6 1.500 3-1.500 6-1.500" fill="none" stroke="currentColor"/></svg>'
    )


def write(path: Path, text: str) -> None:
    """Writes the page under a temporary name, syncs it and renames it into place; RunError when the disk refuses."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(
            f"could not write {path}: {error.strerror or error}; an earlier page of that name is unchanged; free space or choose another folder"
        ) from error
