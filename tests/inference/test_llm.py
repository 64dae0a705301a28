"""Offline batches: order, shapes of the answer, text up to the stop string, from a model in memory and from a folder."""

from __future__ import annotations

import dataclasses

import pytest

from rorqual.errors import ConfigError
from rorqual.inference.llm import LLM
from rorqual.tokenizer import bpe
from tests.inference.models import GREEDY, agreeing, build, prompt
from tests.reference.loop import generate

SHORT = dataclasses.replace(GREEDY, max_tokens=12)


class Bytes:
    """One token a byte."""

    vocab_size, bos_id, eos_id = 256, None, 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def token_bytes(self, number: int) -> bytes:
        return bytes([number])


def test_batches_come_back_in_order_with_all_choices():
    model = agreeing()
    params = dataclasses.replace(SHORT, temperature=0.9, n=2, logprobs=0)
    outs = LLM.from_model(model, speculative=2).generate([prompt(30), prompt(3, 1)], params)
    wanted = [c.token_ids for c in generate(model, [prompt(30), prompt(3, 1)], params).completions]
    assert [c.token_ids for out in outs for c in out.outputs] == wanted
    assert [len(c.logprobs) for out in outs for c in out.outputs] == [12] * 4 and outs[1].prompt_token_ids == prompt(3, 1)


@pytest.mark.parametrize("drafts", [0, 3])
def test_text_ends_before_the_stop_string_and_tokens_with_it(drafts):
    model = agreeing()
    llm = LLM.from_model(model, Bytes(), speculative=drafts)
    free = llm.generate("hello", SHORT)[0].outputs[0]
    assert free.finish_reason == "length" and free.text == bytes(free.token_ids).decode("utf-8", "replace")
    stop = next(c for c in free.text[3:] if c != "\ufffd")
    got = llm.generate("hello", dataclasses.replace(SHORT, stop=(stop,)))[0].outputs[0]
    assert got.text == free.text[: free.text.index(stop)] and got.finish_reason == "stop"
    assert free.token_ids[: len(got.token_ids)] == got.token_ids and bytes(got.token_ids[-1:]).decode() == stop
    kept = llm.generate("hello", dataclasses.replace(SHORT, stop=(stop,), include_stop_str_in_output=True))[0].outputs[0]
    assert kept.text == got.text + stop


@pytest.mark.parametrize("drafts", [0, 2])
def test_structured_output_holds_with_drafts(drafts, tmp_path):
    pytest.importorskip("llguidance", reason="structured output needs llguidance")
    from rorqual.inference.params import StructuredOutputs

    tokenizer = bpe.train(["the quick brown fox 0123456789 jumps over the lazy dog " * 20], 288, tmp_path)
    model = build(vocab_size=288, eos_token_id=tokenizer.eos_id)
    params = dataclasses.replace(
        SHORT, ignore_eos=False, max_tokens=24, structured_outputs=StructuredOutputs(choice=("fox 12", "lazy dog"))
    )
    text = LLM.from_model(model, tokenizer, speculative=drafts).generate([[5, 6]], params)[0].outputs[0].text
    assert text in ("fox 12", "lazy dog")


def test_refusals():
    llm = LLM.from_model(agreeing())
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        llm.generate("text", SHORT)
    with pytest.raises(ConfigError, match="2 sampling parameters for 1 prompts"):
        llm.generate([5], [SHORT, SHORT])
    assert llm.generate([5], SHORT)[0].outputs[0].text == ""


def test_weights_that_change_between_two_calls_count():
    model = agreeing()
    llm = LLM.from_model(model)
    llm.generate(prompt(40), SHORT)
    model.init_weights(9)
    assert llm.generate(prompt(40), SHORT)[0].outputs[0].token_ids == generate(model, [prompt(40)], SHORT).completions[0].token_ids
