"""Structured output: what the mask allows is what the grammar means; drafts are validated and rolled back without a trace."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from rorqual.errors import ConfigError, MissingExtraError
from rorqual.inference.grammar import GrammarCompiler
from rorqual.inference.params import StructuredOutputs
from rorqual.tokenizer import bpe, special


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe.train(['{"name": "value", "count": 12, "on": true}\nyes no maybe\n' * 20], 340, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def compiler(tokenizer):
    pytest.importorskip("llguidance", reason="structured output needs the extra `serve`")
    return GrammarCompiler(tokenizer, [tokenizer.eos_id])


SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "on": {"type": "boolean"}},
    "required": ["count", "on"],
    "additionalProperties": False,
}


def draw(grammar, eos, seed, most=200):
    """A random walk over what the masks allow."""
    generator, ids = torch.Generator().manual_seed(seed), []
    while len(ids) < most and (not ids or ids[-1] != eos):
        allowed = grammar.mask().nonzero().flatten()
        ids.append(int(allowed[torch.randint(len(allowed), (1,), generator=generator)]))
        assert grammar.accept(ids[-1])
    return ids


@pytest.mark.parametrize("seed", range(5))
def test_random_walks_give_valid_answers(compiler, tokenizer, seed):
    eos = tokenizer.eos_id
    text = tokenizer.decode(draw(compiler.compile(StructuredOutputs(json=SCHEMA)), eos, seed)[:-1])
    value = json.loads(text)
    assert set(value) == {"count", "on"} and 0 <= value["count"] <= 99 and isinstance(value["on"], bool)
    assert re.sub(r'"[^"]*"', "", text).count(" ") == 0  # no optional white space
    text = tokenizer.decode(draw(compiler.compile(StructuredOutputs(regex=r"[0-9]{3}-[ab]{2}")), eos, seed)[:-1])
    assert re.fullmatch(r"[0-9]{3}-[ab]{2}", text)
    text = tokenizer.decode(draw(compiler.compile(StructuredOutputs(choice=("yes", 'no "way"'))), eos, seed)[:-1])
    assert text in ("yes", 'no "way"')


def test_json_object_begins_with_a_brace(compiler, tokenizer):
    allowed = compiler.compile(StructuredOutputs(json_object=True)).mask().nonzero().flatten().tolist()
    assert allowed and all(tokenizer.token_bytes(number).startswith(b"{") for number in allowed)


def test_a_lark_grammar_and_the_schema_as_text(compiler, tokenizer):
    grammar = compiler.compile(StructuredOutputs(grammar='start: "a" /b+/'))
    assert grammar.validate([*tokenizer.encode("abb"), tokenizer.eos_id]) == len(tokenizer.encode("abb")) + 1
    a, b = compiler.compile(StructuredOutputs(json=json.dumps(SCHEMA))), compiler.compile(StructuredOutputs(json=SCHEMA))
    assert torch.equal(a.mask(), b.mask())


def test_validate_counts_and_leaves_no_trace(compiler, tokenizer):
    grammar = compiler.compile(StructuredOutputs(regex="ab+"))
    ids = [*tokenizer.encode("a"), *tokenizer.encode("b"), *tokenizer.encode("b"), *tokenizer.encode("a")]
    before = grammar.mask()
    assert grammar.validate(ids) == 3 and torch.equal(grammar.mask(), before)
    assert all(grammar.accept(token) for token in ids[:2]) and not grammar.accept(ids[3])
    after = grammar.mask()
    assert grammar.accept(ids[2]) and not grammar.done
    grammar.rollback(1)
    assert torch.equal(grammar.mask(), after)


def test_the_end_token_is_allowed_where_the_answer_is_complete(compiler, tokenizer):
    eos = tokenizer.eos_id
    grammar = compiler.compile(StructuredOutputs(choice=("yes",)))
    assert not grammar.mask()[eos] and not grammar.accept(eos)
    ids = tokenizer.encode("yes")
    assert all(grammar.accept(token) for token in ids) and grammar.mask().nonzero().flatten().tolist() == [eos]
    assert grammar.accept(eos) and grammar.done and not grammar.accept(eos)
    grammar.rollback(1 + len(ids))
    assert grammar.validate([*ids, eos]) == len(ids) + 1


def test_a_grammar_begins_behind_the_reasoning(compiler, tokenizer):
    end = tokenizer.token_to_id(special.THINK_END)
    grammar = compiler.compile(StructuredOutputs(choice=("yes",)), start_after=end)
    ids = [*tokenizer.encode("no, maybe"), end, *tokenizer.encode("yes"), tokenizer.eos_id]
    assert grammar.mask() is None and not grammar.active and grammar.validate(ids) == len(ids) and not grammar.active
    for token in ids[: ids.index(end) + 1]:
        assert grammar.accept(token)
    assert grammar.active and grammar.mask() is not None
    grammar.rollback(1)
    assert grammar.mask() is None and grammar.validate([*ids[:3], end, *tokenizer.encode("no")]) == 4


@pytest.mark.parametrize("wanted", [{"regex": "("}, {"json": {"type": "wat"}}, {"json": "{"}, {"grammar": "start: missing"}])
def test_what_cannot_be_compiled_is_refused_with_the_reason(compiler, wanted):
    with pytest.raises(ConfigError, match="structured outputs: ."):
        compiler.compile(StructuredOutputs(**wanted))


def test_without_the_library_the_extra_is_named(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match="serve"):
        GrammarCompiler(tokenizer, [1])
