"""Short answers compared as their datasets define it: SQuAD and Natural Questions, TriviaQA, DROP; exact equality and F1 of words. No torch.

    SQuAD, NQ    lower case, no ASCII punctuation, no articles, single spaces                        (Rajpurkar et al. 2016)
    TriviaQA     lower case, underscores and punctuation become spaces, no articles, single spaces   (Joshi et al. 2017)
    DROP         word by word as SQuAD, numbers as floats, bags of words; spans are assigned to each other one to one (Dua et al. 2019)

Chinese punctuation is dropped too and a Chinese character is a word of its own, as CMRC 2018 counts; neither changes English text.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

_PUNCTUATION = frozenset(string.punctuation)
_WIDE = re.compile("[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\u2018\u2019\u201c\u201d\u2026\u2014\u00b7]")
_HAN = re.compile("([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def squad(text: str) -> str:
    """The form in which SQuAD and Natural Questions compare."""
    text = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    if _HAN.search(text):
        text = _WIDE.sub("", text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def trivia(text: str) -> str:
    """The form in which TriviaQA compares."""
    marks = _PUNCTUATION | set("\u2018\u2019\u00b4`")
    spaced = "".join(" " if character in marks else character for character in text.replace("_", " ").lower())
    return " ".join(_ARTICLES.sub(" ", spaced).split())


def exact(text: str, golds: Iterable[str], form: Callable[[str], str] = squad) -> float:
    """1.0 where the text equals one of the right answers in that form; an answer of which nothing is left is never right."""
    said = form(text)
    return float(bool(said) and any(said == form(gold) for gold in golds))


def words(text: str) -> list[str]:
    """Words of the SQuAD form; a Chinese character is one."""
    return _HAN.sub(r" \1 ", squad(text)).split()


def f1(text: str, golds: Iterable[str]) -> float:
    """Best F1 of words over the right answers: 2 P R / (P + R) with the common words counted as often as they stand in both."""
    return max((_f1(words(text), words(gold)) for gold in golds), default=0.0)


def _f1(said: Sequence[str], gold: Sequence[str]) -> float:
    common = sum((Counter(said) & Counter(gold)).values())
    return 2 * common / (len(said) + len(gold)) if common else 0.0


# ---------------------------------------------------------------------- DROP


def drop(spans: Sequence[str], gold: Sequence[str]) -> tuple[float, float]:
    """(exact, F1) of the answered spans against the spans of one right answer, F1 rounded to two places as the benchmark does.

    Spans are assigned to each other so that the sum of their F1 is largest; spans without a partner count 0.
    """
    said, right = [_drop_form(one) for one in spans], [_drop_form(one) for one in gold]
    equal = float(len(said) == len(right) and set(said) == set(right))
    table = [[_bag_f1(set(mine.split()), set(theirs.split())) for mine in said] for theirs in right]
    return equal, round(_assigned(table) / max(len(said), len(right), 1), 2)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _drop_form(text: str) -> str:
    out = []
    for token in re.split("[ -]", text.lower()):
        plain = token if _number(token) is not None else "".join(character for character in token if character not in _PUNCTUATION)
        value = _number(plain)
        out.append(" ".join(_ARTICLES.sub(" ", plain if value is None else str(value)).split()))
    return " ".join(token for token in out if token)


def _bag_f1(said: set[str], gold: set[str]) -> float:
    """F1 of two sets of words; 0 where the right one has numbers and none of them was said."""
    numbers = {word for word in gold if _number(word) is not None}
    if numbers and not numbers & said:
        return 0.0
    common = len(said & gold)
    precision = common / len(said) if said else 1.0
    recall = common / len(gold) if gold else 1.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _assigned(table: list[list[float]]) -> float:
    """Largest sum over one-to-one assignments of rows to columns, exact up to 12 on the shorter side, beyond that pair by pair."""
    if not table or not table[0]:
        return 0.0
    if len(table[0]) > len(table):
        table = [list(column) for column in zip(*table, strict=True)]
    width = len(table[0])
    if width > 12:
        return _greedy(table)
    best = {0: 0.0}
    for row in table:
        grown = dict(best)
        for used, total in best.items():
            for column in range(width):
                if not used >> column & 1:
                    key = used | 1 << column
                    grown[key] = max(grown.get(key, 0.0), total + row[column])
        best = grown
    return max(best.values())


def _greedy(table: list[list[float]]) -> float:
    pairs = sorted(((value, row, column) for row, line in enumerate(table) for column, value in enumerate(line)), reverse=True)
    rows: set[int] = set()
    columns: set[int] = set()
    total = 0.0
    for value, row, column in pairs:
        if row not in rows and column not in columns:
            total += value
            rows.add(row)
            columns.add(column)
    return total
