"""What a checkpoint of GRPO holds: every tensor to the bit, waiting groups among them; what is frozen has no moments."""

import pytest
import torch

from rorqual.adapters.config import LoraConfig
from rorqual.adapters.lora import adapted, merged_copy
from rorqual.errors import CheckpointError
from rorqual.posttrain.base import open_base
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.grpo_state import GRPOState
from rorqual.posttrain.presets import GRPOConfig, Objective
from tests.posttrain.scenes import groups
from tests.posttrain.tiny_chat import write_model

CPU = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return open_base(write_model(tmp_path_factory.mktemp("state")))


def _run(**changes):
    settings = GRPOConfig(prompts=2, group=4, max_new_tokens=6, objective=Objective(kl_beta=0.1))
    return GRPORun(model="m", grpo=settings, **changes)


def model_of(state):
    return merged_copy(state.model) if adapted(state.model) else state.model


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_checkpoint_brings_everything_back(base, tmp_path, lora):
    run = _run(lora=lora)
    state = GRPOState.build(run, base, *CPU)
    for number, parameter in enumerate(state.optimizer.master.values()):
        parameter.add_(0.001 * number)
    state.refresh_reference()
    state.waiting, state.figures = groups(model_of(state), run.grpo), {"reward_mean": 0.1 + 0.2}
    state.position.step, state.optimizer.updates = 3, 2
    state.save(tmp_path, 1, {"base_fingerprint": "x"})
    state.save(tmp_path, 1, {"base_fingerprint": "x"})  # in the place of the first
    other = GRPOState.build(run, base, *CPU)
    with pytest.raises(CheckpointError, match="base_fingerprint"):
        other.load(tmp_path / "step-00000003", {"base_fingerprint": "y"})
    other.load(tmp_path / "step-00000003", {"base_fingerprint": "x"})
    ours, theirs = state.tensors(), other.tensors()
    assert ours.keys() == theirs.keys() and all(torch.equal(t, theirs[name]) for name, t in ours.items())
    assert any(name.startswith("reference.") for name in ours)
    assert (other.position, other.figures, other.optimizer.updates) == (state.position, state.figures, 2)
    for one, two in zip(state.waiting, other.waiting, strict=True):
        assert torch.equal(one.advantages, two.advantages)
        assert all(
            torch.equal(a.routes, b.routes) and torch.equal(a.logprobs, b.logprobs) for a, b in zip(one.answers, two.answers, strict=True)
        )


def test_mtp_modules_and_a_frozen_router_have_no_moments(base):
    run = GRPORun(model="m", grpo=GRPOConfig(freeze_router=True))
    names = GRPOState.build(run, base, *CPU).optimizer.exp_avg.keys()
    assert not any(name.startswith("model.layers.3.") or name.endswith("mlp.gate.weight") for name in names)
    assert "model.layers.2.self_attn.o_proj.weight" in names
    adapters = GRPOState.build(_run(lora=LoraConfig(rank=2)), base, *CPU).optimizer.exp_avg
    assert adapters and all(".lora_" in name for name in adapters)
