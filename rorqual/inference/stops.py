"""Stop strings in a stream: text that may turn out to be the start of one is held back (field case F23). No torch.

A stop string can begin in one token and end in another, or in the middle of a token. So tokens go in one at a time, the text
that is certain comes out, and the pieces joined are what a search of the whole text would have cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rorqual.inference.detokenize import TextStream


class StopStream:
    """Feeds on token ids of one answer, gives its text up to the first complete stop string.

    Of several stop strings the one that is complete first wins, of those complete together the longest, so that the answer does
    not depend on how the tokens arrive. With `include` the stop string itself is part of the text.
    """

    def __init__(self, token_bytes: Callable[[int], bytes], stop: Sequence[str] = (), include: bool = False) -> None:
        self._text = TextStream(token_bytes)
        self._stop, self._include = tuple(stop), include
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the answer."""

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens make certain; nothing more once `matched` is set."""
        if self.matched is not None:
            return ""
        text = self._held + self._text.add(token_ids)
        found = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            _, at, self.matched = min(found)
            self._held = ""
            return text[: at + (len(self.matched) if self._include else 0)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back when the answer ended otherwise; an incomplete character becomes U+FFFD."""
        held, self._held = self._held, ""
        return held + self._text.finish() if self.matched is None else ""


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
