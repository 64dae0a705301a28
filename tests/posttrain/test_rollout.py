"""Rollouts: answers keyed by question, whoever shares the batch; which tokens count (F35); weights shared with the trainer."""

import pytest
import torch

from rorqual.errors import DataError
from rorqual.posttrain.policy import score
from rorqual.posttrain.rollout import LocalRollout, Prompt, render_prompt, up_to_end
from rorqual.tokenizer import bpe
from tests.inference.models import build, prompt
from tests.posttrain.scenes import config


@pytest.mark.parametrize(
    ("ids", "ends", "kept", "cut"),
    [([5, 1, 1, 1], {1}, [5, 1], False), ([5, 6, 7, 8], {1}, [5, 6, 7, 8], True), ([1, 9], {1}, [1], False), ([5, 1, 9, 9], {1}, [5, 1], False),
     ([5, 3], {1, 3}, [5, 3], False)],
)  # fmt: skip
def test_tokens_count_by_position(ids, ends, kept, cut):
    """Field case F35's table: pad id equals EOS id."""
    assert up_to_end(ids, frozenset(ends), 4) == (kept, cut)


def test_an_answer_depends_on_its_key_alone():
    settings = config(group=3)
    model = build()
    prompts = [Prompt(prompt(6, 1)), Prompt(prompt(17, 2))]
    both = LocalRollout(model, None).sample(prompts, settings, [8, 9])
    alone = LocalRollout(model, None).sample(prompts[1:], settings, [9])
    assert [a.ids for a in both[1]] == [a.ids for a in alone[0]] and len({tuple(a.ids) for a in both[1]}) > 1
    for answer in both[0] + both[1]:
        assert answer.logprobs.shape == (len(answer.ids),) and answer.routes.shape[0] == len(answer.prompt) + len(answer.ids) - 1
        assert answer.cut == (len(answer.ids) == 10 and answer.ids[-1] != 1)


def test_changed_weights_are_used_at_once():
    settings = config()
    model = build()
    rollout = LocalRollout(model, None)
    first = rollout.sample([Prompt(prompt(6, 1))], settings, [1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    second = rollout.sample([Prompt(prompt(6, 1))], settings, [1])
    fresh = LocalRollout(model, None).sample([Prompt(prompt(6, 1))], settings, [1])
    assert [a.ids for a in second[0]] == [a.ids for a in fresh[0]] != [a.ids for a in first[0]]


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="exceed the model's context"):
        LocalRollout(build(), None).sample([Prompt(prompt(250))], config(), [0])


def test_text_is_split_into_reasoning_and_answer(tmp_path):
    tokenizer = bpe.train(["a b c d <think> hello world </think> answer " * 4] * 8, 320, tmp_path / "t")
    from rorqual.posttrain.rollout import Answer, parse

    ends = frozenset([tokenizer.eos_id])
    ids = [*tokenizer.encode("hello</think>answer"), tokenizer.eos_id]
    one = parse(Answer([1], ids, False), tokenizer, "r1", True, ends)
    assert (one.reasoning, one.content, one.closed, one.expects_reasoning) == ("hello", "answer", True, True)
    never = parse(Answer([1], tokenizer.encode("hello world"), True), tokenizer, "r1", True, ends)
    assert not never.closed and never.content == "" and never.text == "hello world"
    asked = render_prompt([{"role": "user", "content": "a"}], tokenizer, config(system="b", style="r1", thinking=True))
    assert asked.reasoning and "b" in tokenizer.decode(asked.ids)


def test_a_merged_copy_answers_as_the_model_with_adapters():
    """What the engine runs while adapters are trained: the compiled step takes it, and it never takes adapters unmerged."""
    from rorqual.adapters import lora
    from rorqual.adapters.config import LoraConfig
    from rorqual.kernels import decode

    model = lora.apply(build(), LoraConfig(rank=2))
    with torch.no_grad():
        for layer in lora.adapted(model).values():
            layer.lora_B.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    assert decode.usable(model.config, model.state_dict()) is not None
    merged = LocalRollout(lora.merged_copy(model), None)
    assert merged.llm.engine.runner.why_not is None
    answers = merged.sample([Prompt(prompt(6, 1))], config(), [1])[0]
    scored = score(model, [answer.row for answer in answers])
    assert float((scored.plain - torch.cat([answer.logprobs for answer in answers])).abs().max()) < 1e-5 and scored.flips == 0
