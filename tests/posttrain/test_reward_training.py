"""Training a reward model: losses by hand, cuts that change nothing, exact resume, and a preference that is learned."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from rorqual.adapters.config import LoraConfig
from rorqual.checkpoint import resume
from rorqual.errors import ConfigError, DataError, RunError
from rorqual.posttrain import reward_training
from rorqual.posttrain.base import open_base
from rorqual.posttrain.reward_config import RewardConfig
from rorqual.posttrain.reward_data import Encoded, read_cases
from rorqual.posttrain.reward_model import RewardHead, RewardModel, open_reward, reward_base
from rorqual.posttrain.reward_training import Ready, case_losses, correct, encode_cases, micro_batches, step_loss, train_reward
from tests.inference.models import build
from tests.posttrain.tiny_chat import write_model


def _pair(first: list[int], second: list[int], spoken: int = 0) -> Ready:
    items = tuple(Encoded(ids, (len(ids) - spoken, len(ids)) if spoken else (0, 0)) for ids in (first, second))
    return Ready(items, 0.0, None)


PAIRS = [_pair([1, 2, 3, 4], [5, 6, 7], 2), _pair([8, 9, 10, 11, 12, 13], [3, 4, 5], 1), _pair([7, 7, 7], [9, 1, 4, 4, 2], 2)]


def test_losses_by_hand():
    one = Ready((Encoded([1]), Encoded([2])), 0.5, None)
    good, bad = Ready((Encoded([1]),), 0.0, True), Ready((Encoded([1]),), 0.0, False)
    losses = case_losses(torch.tensor([2.0, 0.5, 1.0, 1.0]), [one, good, bad])
    expected = [math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(1.0))]
    assert losses.tolist() == pytest.approx(expected)
    assert case_losses(torch.tensor([2.0, 0.5]), [one], 0.1).tolist() == pytest.approx([expected[0] + 0.1 * 2.5**2])
    assert correct(torch.tensor([2.0, 0.5, 1.0, 1.0]), [one, good, bad]) == 2


def _gradient(cuts: list[list[Ready]]) -> tuple[float, list[torch.Tensor]]:
    model, head = build(), RewardHead(64)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, 64))
    total = 0.0
    for part in cuts:
        loss, _, _ = step_loss(model, head, part, num_cases=3, num_tokens=10, reasoning_weight=0.5, centre_weight=0.01)
        loss.backward()
        total += float(loss.detach())
    return total, [p.grad for p in (head.weight, model.lm_head.weight, model.model.layers[0].self_attn.o_proj.weight)]


def test_micro_batches_change_neither_loss_nor_gradient():
    whole, gradient = _gradient([PAIRS])
    cut, other = _gradient([PAIRS[:1], PAIRS[1:]])
    assert whole == pytest.approx(cut, rel=1e-6)
    for one, two in zip(gradient, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
    assert [len(part) for part in micro_batches(PAIRS, 24)] == [3] and [len(part) for part in micro_batches(PAIRS, 16)] == [2, 1]
    assert [len(part) for part in micro_batches(PAIRS, 1)] == [1, 1, 1]


def test_the_first_loss_is_log_two_and_the_reasoning_is_the_model_s_own_loss():
    model, head = build(), RewardHead(64)
    loss, scores, spoken = step_loss(model, head, PAIRS[:1], num_cases=1, num_tokens=4, reasoning_weight=0.0, centre_weight=0.0)
    assert float(loss.detach()) == pytest.approx(math.log(2)) and scores.tolist() == [0.0, 0.0] and float(spoken) == 0.0
    loss, _, spoken = step_loss(model, head, PAIRS[:1], num_cases=1, num_tokens=4, reasoning_weight=1.0, centre_weight=0.0)
    expected = 0.0
    for item in PAIRS[0].items:
        logp = model.logits(model(torch.tensor([item.ids])).hidden)[0].log_softmax(-1).detach()
        expected -= sum(float(logp[at - 1, item.ids[at]]) for at in range(*item.reasoning))
    assert float(spoken) == pytest.approx(expected, rel=1e-5) and float(loss.detach()) == pytest.approx(
        math.log(2) + expected / 4, rel=1e-5
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("reward"), num_hidden_layers=2, initializer_range=0.1)


def _data(file, reasoning=False, count=16):  # type: ignore[no-untyped-def]
    rows = []
    for number in range(count):
        row = {"prompt": f"{number}?", "chosen": "the whale sings", "rejected": "one and two"}
        if reasoning:
            row |= {"chosen_reasoning": "sings", "rejected_reasoning": "two"}
        rows.append(row)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _config(folder, data, **changes):  # type: ignore[no-untyped-def]
    fields = {
        "epochs": 2,
        "batch": 8,
        "learning_rate": 5e-3,
        "validation_share": 0.2,
        "max_tokens": 256,
        "max_reasoning_tokens": 4,
        "threads": 1,
    }
    return RewardConfig(str(folder), data, **{**fields, **changes})


def test_a_preference_is_learned_and_the_folder_scores(tmp_path, folder):
    result = train_reward(_config(folder, _data(tmp_path / "p.jsonl")), tmp_path / "out", progress=False)
    assert result.accuracy == 1.0 and result.held_out > 0 and not result.reasoning and result.loss is not None and result.loss < math.log(2)
    reward = RewardModel.load(tmp_path / "out")
    items = [item for case in read_cases(tmp_path / "p.jsonl").items[:3] for item in case.items]
    scores = reward.scores(items)
    assert all(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))
    assert scores == pytest.approx([reward.scores([item])[0] for item in items], abs=1e-4)  # alone as in company
    assert 0 < reward.value(scores[1]) < 0.5 < reward.value(scores[0]) < 1
    with pytest.raises(RunError, match="already holds a run"):
        train_reward(_config(folder, _data(tmp_path / "p.jsonl")), tmp_path / "out", progress=False)


@pytest.mark.slow
def test_adapters_and_score_train_alone_and_are_read_by_name(tmp_path, folder):
    seen: list[int] = []
    config = _config(folder, _data(tmp_path / "p.jsonl"), lora=LoraConfig(rank=4), learning_rate=2e-2)
    result = train_reward(config, tmp_path / "out", progress=False, on_data=seen.append)
    assert result.accuracy == 1.0 and result.loss is not None and result.loss < math.log(2)
    assert not (tmp_path / "out" / "hf").exists() and 0 < seen[0] <= 8192
    adapter = tmp_path / "out" / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors", "reward.json", "reward_head.safetensors"]  # fmt: skip
    assert all(t.abs().sum() > 0 for name, t in load_file(adapter / "adapter_model.safetensors").items() if ".layers.1." in name)
    items = [item for case in read_cases(tmp_path / "p.jsonl").items[:3] for item in case.items]
    scores = RewardModel.load(tmp_path / "out").scores(items)
    assert all(a > b for a, b in zip(scores[::2], scores[1::2], strict=True))
    assert RewardModel.load(adapter).scores(items) == scores
    component, facts = open_reward(str(tmp_path / "out"))
    assert isinstance(component, RewardModel) and facts["kind"] == "reward model"
    assert facts["weights"] != open_base(folder).fingerprint() == reward_base(folder).fingerprint()


@pytest.mark.parametrize("lora", [None, pytest.param(LoraConfig(rank=2), marks=pytest.mark.slow)], ids=["all weights", "adapters"])
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, folder, monkeypatch, lora):
    result = "hf" if lora is None else "adapter"
    few = {"epochs": 1, "batch": 2, "validation_share": 0.0, "checkpoint_every_steps": 2}
    config = _config(folder, _data(tmp_path / "p.jsonl", reasoning=True, count=8), lora=lora, **few)
    train_reward(config, tmp_path / "whole", progress=False)
    made, one = [], reward_training._Loop._one

    def stopping(self, interrupted):  # type: ignore[no-untyped-def]
        made.append(self.step)
        return len(made) != 4 and one(self, interrupted)

    with monkeypatch.context() as patch:
        patch.setattr(reward_training._Loop, "_one", stopping)
        part = train_reward(config, tmp_path / "cut", progress=False)
    assert (
        part.step == 3 < part.steps
        and resume.steps(tmp_path / "cut" / "checkpoints") == [2, 3]
        and not (tmp_path / "cut" / result).exists()
    )
    with pytest.raises(ConfigError, match="learning_rate was 0.005"):
        train_reward(_config(folder, config.data, lora=lora, **few, learning_rate=1.0), tmp_path / "cut", resume_run=True, progress=False)
    train_reward(config, tmp_path / "cut", resume_run=True, progress=False)
    for name in ("model.safetensors" if lora is None else "adapter_model.safetensors", "reward_head.safetensors", "reward.json"):
        assert (tmp_path / "cut" / result / name).read_bytes() == (tmp_path / "whole" / result / name).read_bytes(), name
    assert json.loads((tmp_path / "whole" / result / "reward.json").read_text())["reasoning"] is True


def test_what_is_left_out_is_counted(tmp_path, folder):
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_reasoning": "d", "rejected_reasoning": "e"}, {"prompt": "a", "chosen": "b", "rejected": "c"},
            {"prompt": "a", "chosen": "b " * 400, "rejected": "c", "chosen_reasoning": "d", "rejected_reasoning": "e"}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    from rorqual.tokenizer import bpe

    tokenizer = bpe.load(folder)
    cases = read_cases(file)
    assert len(encode_cases(cases, tokenizer, "v3", True, 10_000)) == 2 and cases.rejected == {"no reasoning before the score": 1}
    cases = read_cases(file)
    with pytest.raises(DataError, match="no case is left"):
        encode_cases(cases, tokenizer, "v3", True, 9)
    assert cases.rejected == {"longer than 9 tokens": 2, "no reasoning before the score": 1}
