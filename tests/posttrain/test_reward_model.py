"""A reward model in use: the head, scores with and without reasoning, the component, folders that are none."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.errors import CheckpointError, DataError
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import problem_of
from rorqual.posttrain.reward_data import Batched, Encoded, Item
from rorqual.posttrain.reward_model import RewardFacts, RewardHead, RewardModel, open_reward, packed, reward_folder
from rorqual.posttrain.rewards import Rewards
from rorqual.posttrain.rollout import Answer
from rorqual.tokenizer import bpe
from tests.posttrain.tiny_chat import write_model


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("rm"), num_hidden_layers=2)
    return hf.load(folder)[0], bpe.load(folder)


def _reward(parts, reasoning=False, mean=0.0, max_tokens=256):  # type: ignore[no-untyped-def]
    model, tokenizer = parts
    head = RewardHead(model.config.hidden_size)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, model.config.hidden_size))
        head.bias.fill_(0.25)
    return RewardModel(model, head, tokenizer, RewardFacts("v3", reasoning, max_tokens, 8, mean))


def test_the_head_starts_at_zero_and_is_linear():
    head = RewardHead(3)
    assert head(torch.ones(2, 3)).tolist() == [0.0, 0.0]
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0, -1.0]]))
        head.bias.fill_(0.5)
    assert head(torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 0.0]])).tolist() == [2.5, 4.5]


def test_items_are_packed_without_padding_and_see_nothing_of_each_other(parts):
    """Field case F29."""
    items = [Encoded([1, 2, 3]), Encoded([4]), Encoded([5, 6])]
    row = packed(items)
    assert row.ids.tolist() == [[1, 2, 3, 4, 5, 6]] and row.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert row.segment_ids.tolist() == [[0, 0, 0, 1, 2, 2]] and (row.starts, row.ends) == ([0, 3, 4], [2, 3, 5])
    hidden = row.hidden(parts[0]).detach()
    for item, end in zip(items, row.ends, strict=True):
        alone = parts[0](torch.tensor([item.ids])).hidden[0, -1].detach()
        torch.testing.assert_close(hidden[end], alone, rtol=1e-4, atol=1e-5)
    other = packed([Encoded([9, 9, 9]), *items[1:]]).hidden(parts[0]).detach()
    torch.testing.assert_close(other[3:], hidden[3:], rtol=1e-5, atol=1e-6)


def test_a_score_is_the_head_on_the_last_token(parts):
    reward = _reward(parts)
    item = Item("one?", "two", "three")
    ids = reward._prompt(item)
    hidden = reward.model(torch.tensor([ids])).hidden[0, -1].detach()
    assert reward.scores([item])[0] == pytest.approx(float(hidden @ torch.linspace(-1, 1, 64)) + 0.25, abs=1e-4)
    assert reward.scores([item]) != reward.scores([Item("one?", "two")])  # the reference is read


def test_a_model_that_reasons_writes_first_and_has_no_score_without_an_end(parts):
    reward = _reward(parts, reasoning=True)
    given = Item("one?", "two", reasoning="the whale")
    assert math.isfinite(reward.scores([given])[0])
    made = reward._reasoned([Item("one?", "two"), given])
    assert made[1] == given
    score = reward.scores([Item("one?", "two")])[0]
    assert math.isnan(score) == (made[0].reasoning == "")


def test_the_value_is_the_chance_against_an_average_answer(parts):
    reward = _reward(parts, mean=1.0)
    assert reward.value(1.0) == 0.5
    assert reward.value(1.0 + math.log(3)) == pytest.approx(0.75)
    assert reward.value(-1e9) == pytest.approx(0.0)


def test_as_a_component_of_rewards(parts):
    reward = _reward(parts)
    problem = problem_of({"prompt": "one?", "answer": "two"})
    rewards = Rewards(GRPOConfig(rewards={"model": 1.0}), {"model": reward})
    judged = rewards.judge(problem, Answer([], [1], False, content="two"))
    assert judged.reward == pytest.approx(reward.value(reward.scores([Item("one?", "two", "two")])[0])) and 0 < judged.reward < 1
    for cut in (
        Answer([], [1], True, content="two"),
        Answer([], [1], False, content="two", closed=False),
        Answer([], [1], False, content=" "),
    ):
        assert rewards.judge(problem, cut).reward == 0.0  # nothing for what is not whole
    unsure = Rewards(GRPOConfig(rewards={"model": 1.0}), {"model": _reward(parts, max_tokens=9)}).judge(
        problem, Answer([], [1], False, content="two")
    )
    assert math.isnan(unsure.reward) and "tokens" in unsure.outcomes["model"].note


def test_many_answers_at_once_are_worth_what_each_is_alone(parts, monkeypatch):
    problem = problem_of({"prompt": "one?"})
    answers = [Answer([], [1], False, content=text) for text in ("two", "the whale sings", "one and " * 100)] + [
        Answer([], [1], True, content="x")
    ]
    reward = _reward(parts)
    alone = [reward(problem, answer).value for answer in answers[:2]]
    assert isinstance(reward, Batched)
    reward.prefetch([(problem, answer) for answer in answers])
    monkeypatch.setattr(reward, "scores", None)  # nothing is computed again
    assert [reward(problem, answer).value for answer in answers[:2]] == pytest.approx(alone, abs=1e-5)
    assert len(reward._known) == 2  # what is too long, or not whole, is left to its own call


def test_threads_take_turns(parts):
    reward = _reward(parts, reasoning=True)
    items = [Item(f"{number}?", "two") for number in range(6)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda item: reward.scores([item])[0], items))
    assert found == pytest.approx([reward.scores([item])[0] for item in items], nan_ok=True)


def test_what_is_too_long_is_told(parts):
    with pytest.raises(DataError, match="trained on at most 9"):
        _reward(parts, max_tokens=9).scores([Item("one?", "two")])
    with pytest.raises(DataError, match="trained on at most 9"):
        _reward(parts, True, max_tokens=9).scores([Item("one?", "two")])


def test_folders_that_are_no_reward_model(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished reward model"):
        reward_folder(tmp_path)
    (tmp_path / "reward.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no whole reward model"):
        RewardModel.load(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_reward(str(tmp_path / "nothing"))
