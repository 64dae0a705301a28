"""Text from tokens as they come: bytes of a character that is not whole yet are held back, control codes made visible.

A byte-level token may be part of a character; decoding token by token would print U+FFFD for each part. What a model writes is
not trusted: an escape sequence in its text must not steer the reader's terminal. No torch.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable


class TextStream:
    """Feeds on token ids and gives the text that is certain so far; the pieces joined are the decoded bytes of all tokens."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete; bytes that can never be part of a character become U+FFFD."""
        return self._decoder.decode(b"".join(map(self._token_bytes, token_ids)))

    def finish(self) -> str:
        """U+FFFD for a character that never became whole, else nothing."""
        return self._decoder.decode(b"", final=True)


def printable(text: str) -> str:
    """`text` for a terminal: control codes other than newline and tab as their pictures (ESC as U+241B), C1 codes as U+FFFD."""
    return text.translate(_PICTURES)


_PICTURES = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421} | {code: 0xFFFD for code in range(0x80, 0xA0)}
)
