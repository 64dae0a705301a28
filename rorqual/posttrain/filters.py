"""What an answer must be to be learned from: whole, in one language, within bounds, without loops, not there already.

    reason = rejected(question, reasoning, content, FilterConfig())     # "" for an answer to keep
    Seen().again(text)                                                   # the same text, case and spaces apart

Report section 5.1 (rejection sampling; readable, concise data) and DeepSeek-R1 section 2.3.3 (mixed languages, long paragraphs and code
blocks in the reasoning were filtered out). Neither gives thresholds: these are ours, the one of repetition is Gopher's for 10-grams.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rorqual.errors import ConfigError
from rorqual.posttrain.rewards import script_share
from rorqual.tokenizer.special import THINK_BEGIN, THINK_END
from rorqual.train.records import number, whole

GRAM = 10
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")
_LOOP = re.compile(r"(?=(.{1,48}?)\1{9})", re.DOTALL)
_LANGUAGES = ("en", "zh", "ru", "ar", "ko", "ja", "el", "hi")
_LEAST_LETTERS = 20


def words(text: str) -> list[str]:
    """Words of a text, NFKC and case folded, without punctuation; an ideograph, a kana and a Hangul syllable are words of their own."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def grams(tokens: Sequence[str], size: int = GRAM) -> Iterator[str]:
    """Every run of `size` words, joined by spaces."""
    return (" ".join(tokens[at : at + size]) for at in range(len(tokens) - size + 1))


@dataclass(frozen=True)
class FilterConfig:
    """Bounds on an answer. `language` "auto" takes the question's script."""

    language: str = "auto"
    min_language_share: float = 0.9
    """Share of the letters, formulas and code apart, that must be of the language's script."""
    max_repeated: float = 0.1
    """Share of the letters that may stand in 10-grams that came before."""
    min_tokens: int = 1
    max_tokens: int | None = None
    """Of reasoning and answer together; none for no bound but the drawing's."""

    def __post_init__(self) -> None:
        for name in ("min_language_share", "max_repeated"):
            number(name, getattr(self, name), 0)
            if getattr(self, name) > 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be a share from 0 to 1")
        whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None:
            whole("max_tokens", self.max_tokens, max(1, self.min_tokens))
        if self.language != "auto":
            script_share("", self.language)  # refuses what it does not know


def rejected(question: str, reasoning: str, content: str, tokens: int, config: FilterConfig) -> str:
    """The first reason to leave an answer out: "format", "length", "language" or "repetition"; "" where there is none."""
    if not content.strip() or any(tag in text for tag in (THINK_BEGIN, THINK_END) for text in (reasoning, content)):
        return "format"
    if tokens < config.min_tokens or (config.max_tokens is not None and tokens > config.max_tokens):
        return "length"
    language = language_of(question) if config.language == "auto" else config.language
    if any(mixed(text, language, config.min_language_share) for text in (reasoning, content)):
        return "language"
    if any(repeated_share(text) > config.max_repeated or loops(text) for text in (reasoning, content)):
        return "repetition"
    return ""


def language_of(text: str) -> str:
    """The language whose script most letters belong to; "en" stands for any in Latin letters, and for a text without letters."""
    shares = {language: script_share(text, language) for language in _LANGUAGES}
    best = max(_LANGUAGES, key=lambda language: (shares[language], -_LANGUAGES.index(language)))
    return best if shares[best] > 0 else "en"


def mixed(text: str, language: str, least: float) -> bool:
    """Whether too few letters are of the language's script; a text with under 20 letters is not judged."""
    if sum(c.isalpha() for c in text) < _LEAST_LETTERS:
        return False
    share = script_share(text, language)
    if share == 0.0:  # all foreign, or formulas alone, which are of no language
        return any(script_share(text, other) > 0 for other in _LANGUAGES if other != language)
    return share < least


def repeated_share(text: str, size: int = GRAM) -> float:
    """Share of a text's letters and digits that stand in runs of `size` words that occurred before it in the text."""
    tokens = words(text)
    seen: Counter[str] = Counter()
    covered = [False] * len(tokens)
    for at, gram in enumerate(grams(tokens, size)):
        seen[gram] += 1
        if seen[gram] > 1:
            covered[at : at + size] = [True] * size
    total = sum(map(len, tokens))
    return sum(len(token) for token, hit in zip(tokens, covered, strict=True) if hit) / total if total else 0.0


def loops(text: str) -> bool:
    """Whether a piece of up to 48 characters with a letter in it stands ten times in a row."""
    return any(any(c.isalpha() for c in found[1]) for found in _LOOP.finditer(text))


class Seen:
    """Texts so far: `again` is True for one that was there before, spaces, case and Unicode form apart."""

    def __init__(self) -> None:
        self._texts: set[str] = set()

    def again(self, text: str) -> bool:
        """Whether the text was there, which it is from now on."""
        plain = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
        known = plain in self._texts
        self._texts.add(plain)
        return known


def overlap(first: str, second: str, size: int = 5) -> float:
    """Jaccard index of the two texts' runs of `size` words (of all words where one is shorter); 1 for equal ones."""
    a, b = (_runs(text, size) for text in (first, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def _runs(text: str, size: int) -> set[str]:
    tokens = words(text)
    return set(grams(tokens, size)) or {" ".join(tokens)}
