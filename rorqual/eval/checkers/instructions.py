"""IFEval's 25 instructions, each a rule that a program can verify (Zhou et al. 2023, table 1). No torch.

`strict` asks each rule of the answer as it is; `loose` of eight forms of it, with its first line, its last line and its asterisks left out in
every way, and one of them must do. An answer without a visible character follows nothing. Sentences are counted by rules of our own
(`sentences`), words in capitals without a tokenizer's splitting of contractions, languages by checkers/language.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rorqual.errors import DataError
from rorqual.eval.checkers import language

Given = Mapping[str, Any]
Rule = Callable[[str, Given], bool]

# ---------------------------------------------------------------------- counting

_SHORT = frozenset(
    "mr mrs ms dr prof st jr sr inc ltd co vs etc no vol fig gen rep sen capt sgt col e.g i.e ph.d u.s u.k a.m p.m approx dept est".split()
)


def words(text: str) -> list[str]:
    """Runs of letters, digits and underscores."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> list[str]:
    """Sentences: a mark of . ! ? … or 。！？ before white space ends one, but not after an abbreviation or an initial.

    Nor does it before a small letter where dots or a closing quotation mark stand between.
    """
    out, start = [], 0
    for found in re.finditer(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)|[。！？]+[”’」』）]*", text):
        before = text[start : found.start()]
        last = before.split()[-1].lower().lstrip("(\"'“‘[*") if before.split() else ""
        if found[0].startswith(".") and (last in _SHORT or re.fullmatch(r"[a-z]", last)) and found.end() < len(text):
            continue
        after = text[found.end() :].lstrip()
        if after[:1].islower() and (found[0][-1] not in ".!?" or found[0].startswith(("..", "…"))):
            continue
        if before.strip():
            out.append(text[start : found.end()].strip())
        start = found.end()
    if text[start:].strip():
        out.append(text[start:].strip())
    return out


def _holds(number: int, relation: str, limit: int) -> bool:
    return number < limit if relation == "less than" else number >= limit


def _matches(pattern: str, text: str) -> int:
    """How often a keyword stands in a text, in any case; upstream reads keywords as patterns."""
    try:
        return len(re.findall(pattern, text, re.IGNORECASE))
    except re.error:
        return len(re.findall(re.escape(pattern), text, re.IGNORECASE))


# ---------------------------------------------------------------------- keywords, language, length


def _keywords(text: str, given: Given) -> bool:
    return all(_matches(word, text) for word in given["keywords"])


def _keyword_frequency(text: str, given: Given) -> bool:
    return _holds(_matches(given["keyword"].strip(), text), given["relation"], given["frequency"])


def _forbidden(text: str, given: Given) -> bool:
    return not any(_matches(rf"\b{word}\b", text) for word in given["forbidden_words"])


def _letters(text: str, given: Given) -> bool:
    return _holds(text.lower().count(given["letter"].strip().lower()), given["let_relation"], given["let_frequency"])


def _language(text: str, given: Given) -> bool:
    return language.detect(text) in (given["language"], None)


def _sentences(text: str, given: Given) -> bool:
    return _holds(len(sentences(text)), given["relation"], given["num_sentences"])


def _paragraphs(text: str, given: Given) -> bool:
    parts = re.split(r"\s?\*\*\*\s?", text)
    if any(not part.strip() for part in parts[1:-1]):
        return False
    return sum(bool(part.strip()) for part in parts) == given["num_paragraphs"]


def _words(text: str, given: Given) -> bool:
    return _holds(len(words(text)), given["relation"], given["num_words"])


def _first_word(text: str, given: Given) -> bool:
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    place = given["nth_paragraph"]
    if count != given["num_paragraphs"] or not 1 <= place <= count or not parts[place - 1].strip():
        return False
    word = parts[place - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0].lower() == given["first_word"].lower()


# ---------------------------------------------------------------------- content and format


def _placeholders(text: str, given: Given) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]


def _postscript(text: str, given: Given) -> bool:
    marker = given["postscript_marker"].strip()
    shapes = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    return re.search(shapes.get(marker, re.escape(marker.lower())), text.lower()) is not None


def _bullets(text: str, given: Given) -> bool:
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == given["num_bullets"]


def _constrained(text: str, given: Given) -> bool:
    return any(option in text for option in ("My answer is yes.", "My answer is no.", "My answer is maybe."))


def _highlights(text: str, given: Given) -> bool:
    single = [one for one in re.findall(r"\*[^\n*]*\*", text) if one.strip("*").strip()]
    double = [one for one in re.findall(r"\*\*[^\n*]*\*\*", text) if one[2:-2].strip()]
    return len(single) + len(double) >= given["num_highlights"]


def _sections(text: str, given: Given) -> bool:
    return len(re.findall(rf"\s?{re.escape(given['section_spliter'].strip())}\s?\d+\s?", text)) >= given["num_sections"]


def _json(text: str, given: Given) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, given: Given) -> bool:
    return any(one.lstrip("<").rstrip(">").strip() for one in re.findall(r"<<[^\n]+>>", text))


# ---------------------------------------------------------------------- whole answers


def _two_responses(text: str, given: Given) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    there = [part.strip() for part in parts if part.strip()]
    return len(there) == 2 and there[0] != there[1]


def _repeats(text: str, given: Given) -> bool:
    return text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())


def _ends(text: str, given: Given) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _quoted(text: str, given: Given) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capitals(text: str, given: Given) -> bool:
    found = [word for word in re.findall(r"\w+(?:[-'’.]\w+)*", text) if word.isupper()]
    return _holds(len(found), given["capital_relation"], given["capital_frequency"])


def _all_capital(text: str, given: Given) -> bool:
    return text.isupper() and language.detect(text) == "en"


def _all_small(text: str, given: Given) -> bool:
    return text.islower() and language.detect(text) == "en"


def _no_comma(text: str, given: Given) -> bool:
    return "," not in text


RULES: Mapping[str, tuple[Rule, tuple[str, ...]]] = MappingProxyType(
    {
        "keywords:existence": (_keywords, ("keywords",)),
        "keywords:frequency": (_keyword_frequency, ("keyword", "relation", "frequency")),
        "keywords:forbidden_words": (_forbidden, ("forbidden_words",)),
        "keywords:letter_frequency": (_letters, ("letter", "let_relation", "let_frequency")),
        "language:response_language": (_language, ("language",)),
        "length_constraints:number_sentences": (_sentences, ("relation", "num_sentences")),
        "length_constraints:number_paragraphs": (_paragraphs, ("num_paragraphs",)),
        "length_constraints:number_words": (_words, ("relation", "num_words")),
        "length_constraints:nth_paragraph_first_word": (_first_word, ("num_paragraphs", "nth_paragraph", "first_word")),
        "detectable_content:number_placeholders": (_placeholders, ("num_placeholders",)),
        "detectable_content:postscript": (_postscript, ("postscript_marker",)),
        "detectable_format:number_bullet_lists": (_bullets, ("num_bullets",)),
        "detectable_format:constrained_response": (_constrained, ()),
        "detectable_format:number_highlighted_sections": (_highlights, ("num_highlights",)),
        "detectable_format:multiple_sections": (_sections, ("section_spliter", "num_sections")),
        "detectable_format:json_format": (_json, ()),
        "detectable_format:title": (_title, ()),
        "combination:two_responses": (_two_responses, ()),
        "combination:repeat_prompt": (_repeats, ("prompt_to_repeat",)),
        "startend:end_checker": (_ends, ("end_phrase",)),
        "startend:quotation": (_quoted, ()),
        "change_case:capital_word_frequency": (_capitals, ("capital_relation", "capital_frequency")),
        "change_case:english_capital": (_all_capital, ()),
        "change_case:english_lowercase": (_all_small, ()),
        "punctuation:no_comma": (_no_comma, ()),
    }
)
"""Instruction by IFEval's name: its rule, and what it must be given."""


def check(ids: Sequence[str], given: Sequence[Given]) -> None:
    """DataError for an instruction that is not known, or lacks what it needs."""
    for name, one in zip(ids, given, strict=True):
        if name not in RULES:
            raise DataError(f"instruction {name!r} is not one of IFEval's {len(RULES)}: {', '.join(RULES)}")
        missing = [key for key in RULES[name][1] if one.get(key) is None]
        if missing:
            raise DataError(f"instruction {name} needs {', '.join(missing)} in 'kwargs'; it has {', '.join(one) or 'nothing'}")


def strict(ids: Sequence[str], given: Sequence[Given], answer: str) -> list[bool]:
    """For each instruction whether the answer follows it."""
    return [bool(answer.strip()) and RULES[name][0](answer, one) for name, one in zip(ids, given, strict=True)]


def loose(ids: Sequence[str], given: Sequence[Given], answer: str) -> list[bool]:
    """For each instruction whether one of the eight forms of the answer follows it."""
    lines = answer.split("\n")
    forms = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    forms += [one.replace("*", "") for one in forms]
    every = [strict(ids, given, one) for one in dict.fromkeys(forms)]
    return [any(column) for column in zip(*every, strict=True)]
