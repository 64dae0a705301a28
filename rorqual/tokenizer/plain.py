"""Documents to token bytes, fast and in bounded memory, exactly as the `tokenizers` library would encode them. Report section 4.1.

Three things differ from `Tokenizer.encode`. Special token strings inside a document stay text, so that no corpus can smuggle in an end of
sequence. Text that is plain ASCII is split by an equivalent expression of Python's own `re`, and every word's ids come from a
dictionary, which is several times as fast. And a long document is encoded in pieces, cut only where the pre-tokeniser splits whatever
stands around, so the tokens are those of the whole; a single endless word is encoded in windows joined where two tokens
stay two when encoded together, which is what makes a sequence of tokens the one that BPE gives.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import tokenizers

from rorqual.errors import TokenizerError
from rorqual.tokenizer import special
from rorqual.tokenizer.bpe import Tokenizer, byte_alphabet

PIECE: Final = 1 << 16
"""Characters of a document that are encoded at a time."""
_WINDOW: Final = 1 << 14
_CACHED_WORDS: Final = 1 << 17
_CACHED_LENGTH: Final = 48

_PUNCTUATION: Final = r"!-/:-@\[-`{-~"
_SPACE: Final = r"\t\n\x0b\x0c\r "
_ASCII_WORDS: Final = re.compile(
    "[0-9]{1,3}"
    f"|[{_PUNCTUATION}][A-Za-z]+"
    "|[\t\x0b\x0c ]?[A-Za-z]+"
    f"| ?[{_PUNCTUATION}]+[\r\n]*"
    f"|[{_SPACE}]*[\r\n]+"
    f"|[{_SPACE}]+(?![^{_SPACE}0-9])"
    f"|[{_SPACE}]+"
)
_PLAIN_BYTES: Final = bytes([9, 10, 11, 12, 13, *range(0x20, 0x7F)])
_LETTERS: Final = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u02af\u0391-\u03a1\u03a3-\u03c9\u0410-\u044f\u05d0-\u05ea\u0621-\u063a\uac00-\ud7a3"
_CJK: Final = "\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5"
_SAFE_CUT: Final = re.compile(
    r"(?<=[A-Za-z])(?=[\x00-@\[-`{-\x7f])"
    r"|(?<=[0-9])(?=[\x00-/:-\x7f])"
    r"|(?<=\n)(?=[!-~])"
    rf"|(?<=[^\W_])(?=[ \n{_PUNCTUATION}])"
    f"|(?<=[{_CJK}])(?=[\uff0c\u3002\u3001])"
)
_ONE_WORD: Final = re.compile(f" ?[A-Za-z{_LETTERS}]+|[{_CJK}]+")
_LINE_CUT: Final = re.compile(r"(?<=\n)(?=[!-~])")


def _is_plain(text: str) -> bool:
    return text.isascii() and not text.encode("ascii").translate(None, _PLAIN_BYTES)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut `text` about every `size` characters where DeepSeek's pre-tokeniser splits in any context; a stretch without such a place stays whole."""
    start, length = 0, len(text)
    while length - start > size:
        cut = _SAFE_CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < length:
        yield text[start:] if start else text


class _Words(dict[str, bytes]):
    """Word to packed ids, filled on demand and emptied when full."""

    def __init__(self, encoder: PlainEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def __missing__(self, word: str) -> bytes:
        packed = self._encoder.word(word.translate(self._encoder.byte_level))
        if len(word) <= _CACHED_LENGTH:
            if len(self) >= _CACHED_WORDS:
                self.clear()
            self[word] = packed
        return packed


class PlainEncoder:
    """Encodes documents to little-endian ids of `dtype` (`<u2` up to 65,536 ids, else `<u4`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        content = tokenizer.content()
        content["added_tokens"] = []
        model = content["model"]
        splits = [part.get("pattern", {}).get("Regex") for part in (content.get("pre_tokenizer") or {}).get("pretokenizers", [])]
        normalizer = content.get("normalizer")
        self.is_deepseek = (
            model.get("type") == "BPE"
            and not model.get("dropout")
            and not model.get("continuing_subword_prefix")
            and not model.get("end_of_word_suffix")
            and splits == [*special.SPLITS, None]
            and content["pre_tokenizer"]["pretokenizers"][3].get("add_prefix_space") is False
            and content["pre_tokenizer"]["pretokenizers"][3].get("use_regex") is False
            and (normalizer is None or normalizer == {"type": "Sequence", "normalizers": []})
        )
        self.dtype = self.dtype_of(tokenizer)
        self._bytes = dict(enumerate(byte_alphabet()))
        self.byte_level = dict(list(self._bytes.items())[:128])
        self._inner = tokenizers.Tokenizer.from_str(json.dumps(content))
        self._model = self._inner.model
        self._words = _Words(self)

    @staticmethod
    def dtype_of(tokenizer: Tokenizer) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        """The smallest type that holds every id."""
        return np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")

    def encode(self, text: str, piece: int = PIECE) -> bytes:
        """Packed ids of one document; exact whatever `piece` is. Another pre-tokeniser than DeepSeek's is given the text whole."""
        if not self.is_deepseek:
            return self._library([text])
        if len(text) <= piece and _is_plain(text):
            return b"".join(map(self._words.__getitem__, _ASCII_WORDS.findall(text)))
        return b"".join(itertools.chain.from_iterable(self._piece(part, piece) for part in pieces(text, piece)))

    def _piece(self, part: str, size: int) -> Iterator[bytes]:
        if _is_plain(part):
            yield b"".join(map(self._words.__getitem__, (found.group() for found in _ASCII_WORDS.finditer(part))))
        elif len(part) > 16 * size and _ONE_WORD.fullmatch(part):
            yield self.word(part.encode().decode("latin-1").translate(self._bytes))
        elif len(part) > 16 * size:
            yield b"".join(self.word(word) for word, _ in self._inner.pre_tokenizer.pre_tokenize_str(part))
        else:
            for plain, lines in itertools.groupby(_LINE_CUT.split(part), key=_is_plain):
                if plain:
                    yield b"".join(map(self._words.__getitem__, _ASCII_WORDS.findall("".join(lines))))
                else:
                    yield self._library(["".join(lines)])

    def _library(self, texts: list[str]) -> bytes:
        return b"".join(self._pack(encoding.ids) for encoding in self._inner.encode_batch_fast(texts, add_special_tokens=False))

    def _pack(self, ids: Iterable[int]) -> bytes:
        return np.fromiter(ids, dtype=self.dtype).tobytes()

    def word(self, word: str, window: int = _WINDOW) -> bytes:
        """Packed ids of one pre-token, given in byte-level characters and encoded `window` characters at a time."""
        if len(word) <= window:
            return self._pack(token.id for token in self._model.tokenize(word))
        done: list[np.ndarray] = []
        tail: list[tuple[int, str]] = []
        start, width = 0, window
        while True:
            tokens = [(token.id, token.value) for token in self._model.tokenize(word[start : start + width])]
            if tail and not self._stay_apart(tail[-1], tokens[0]):
                start -= len(tail.pop()[1])
                if not tail and done:
                    kept = done.pop()
                    tail = [(int(number), self._text_of(int(number))) for number in kept]
                width *= 2  # never narrowed again, so that this ends
                continue
            if start + width >= len(word):
                tail += tokens
                break
            sure = tokens[: max(1, len(tokens) - 16)]
            done.append(np.fromiter((number for number, _ in tail), dtype=self.dtype))
            tail = sure
            start += sum(len(value) for _, value in sure)
        done.append(np.fromiter((number for number, _ in tail), dtype=self.dtype))
        return b"".join(part.tobytes() for part in done)

    def _stay_apart(self, left: tuple[int, str], right: tuple[int, str]) -> bool:
        return [token.id for token in self._model.tokenize(left[1] + right[1])] == [left[0], right[0]]

    def _text_of(self, number: int) -> str:
        value = self._model.id_to_token(number)
        if value is None:
            raise TokenizerError(f"token id {number} has no text; the vocabulary of this tokenizer.json has a hole")
        return str(value)
