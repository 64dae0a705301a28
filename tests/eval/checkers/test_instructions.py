"""Each of IFEval's 25 rules on an answer that follows it and on one that nearly does."""

from __future__ import annotations

import pytest

from rorqual.errors import DataError
from rorqual.eval.checkers import instructions

CASES = [
    ("keywords:existence", {"keywords": ["whale", "deep"]}, "A Whale in the DEEP.", "A whale."),
    ("keywords:frequency", {"keyword": "sing", "relation": "at least", "frequency": 2}, "They sing and sing.", "They sing."),
    ("keywords:frequency", {"keyword": "sing", "relation": "less than", "frequency": 2}, "They sing.", "Singing, they sing."),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "concatenate", "a cat."),
    ("keywords:letter_frequency", {"letter": "Q", "let_relation": "at least", "let_frequency": 2}, "Quick queen", "quick"),
    ("language:response_language", {"language": "de"}, "Der Wal singt und niemand hört ihn.", "The whale sings and nobody hears it."),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3}, "One. Two! Three?", "One. Dr. Two and e.g. three."),
    ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}, "It is 3.5 m. Mr. J. Smith says so.", "A. B. C. One! Two! Three!"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", "one\n\ntwo"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", "one *** *** two"),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 4}, "it's three-two", "one two three"),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 4}, "one two three", "one two three four"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Whales"}, "A\n\n'whales, all", "A\n\nBlue whales"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "b"}, "a\n\nb", "a\n\nb\n\nc"),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] at [place]", "[name]"),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nP. S. more", "Bye. PS more"),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p.p.s more", "P.S. more"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* one\n- two", "* one\n** two"),
    ("detectable_format:constrained_response", {}, "Well. My answer is maybe.", "Maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and *b*", "*a* and * *"),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}, "SECTION 1 a\nSECTION 2 b", "Section 1\nSection 2"),
    ("detectable_format:json_format", {}, '```json\n{"a": 1}\n```', "{'a': 1}"),
    ("detectable_format:title", {}, "<<A poem>>\nline", "<< >>"),
    ("combination:two_responses", {}, "one\n******\ntwo", "one\n******\none"),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say this."}, "say THIS. Done", "I say this."),
    ("startend:end_checker", {"end_phrase": "Any other questions?"}, 'Yes. any other questions?"', "Any other questions? No"),
    ("startend:quotation", {}, '"all of it"', '"all" of it'),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "AB and C-D", "AB and Cd"),
    ("change_case:english_capital", {}, "THE WHALE IS IN THE SEA.", "The whale is in the sea."),
    ("change_case:english_lowercase", {}, "the whale is in the sea.", "the whale is in The sea."),
    ("punctuation:no_comma", {}, "no; none", "one, two"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "good", "bad"), CASES)
def test_rule(name, given, good, bad):
    assert instructions.strict([name], [given], good) == [True]
    assert instructions.strict([name], [given], bad) == [False]


def test_every_rule_is_tested():
    assert {name for name, *_ in CASES} == set(instructions.RULES) and len(instructions.RULES) == 25


def test_an_empty_answer_follows_nothing():
    assert instructions.strict(["punctuation:no_comma"], [{}], " \n") == [False]


def test_loose_leaves_out_lines_and_asterisks():
    ids, given = ["startend:quotation", "punctuation:no_comma"], [{}, {}]
    text = 'Sure, here it is:\n"**all** of it"'
    assert instructions.strict(ids, given, text) == [False, False] and instructions.loose(ids, given, text) == [True, True]


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(DataError, match="instruction 'x:y' is not one of IFEval's 25"):
        instructions.check(["x:y"], [{}])
    with pytest.raises(DataError, match="keywords:frequency needs relation, frequency in 'kwargs'; it has keyword"):
        instructions.check(["keywords:frequency"], [{"keyword": "a"}])


def test_sentences():
    assert instructions.sentences('He said "Stop!" and left. It was 3.5 km... then more. 好。是的！') == [
        'He said "Stop!" and left.', "It was 3.5 km... then more.", "好。", "是的！",
    ]  # fmt: skip
    assert instructions.sentences("") == []
