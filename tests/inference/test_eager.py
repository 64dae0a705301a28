"""The step without a compiler: the model's own results, rows independent of each other, every router and shape."""

from __future__ import annotations

import pytest
import torch

from rorqual.config import ModelConfig
from rorqual.inference import eager
from rorqual.inference.eager import EagerStep, usable
from rorqual.inference.engine import Engine
from rorqual.model.transformer import CausalLM
from tests.inference.models import build
from tests.tiny import t0

SHAPES = {
    "T0": {},
    "V2-Lite's kind": {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "n_shared_experts": 2},
    "V2's kind": {"scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False},
    "groups of one expert": {"n_group": 8, "topk_group": 4},
    "odd widths": {"v_head_dim": 20, "kv_lora_rank": 23, "qk_nope_head_dim": 17, "hidden_size": 52, "moe_intermediate_size": 37, "intermediate_size": 75, "vocab_size": 259, "qk_rope_head_dim": 6},
    "tied, no MTP": {"tie_word_embeddings": True, "num_nextn_predict_layers": 0},
    "no shared expert, all MoE": {"n_shared_experts": 0, "first_k_dense_replace": 0},
    "dense": {"n_routed_experts": 0, "num_nextn_predict_layers": 0},
    "two MTP modules": {"num_nextn_predict_layers": 2},
}  # fmt: skip


def _model(**changes: object) -> CausalLM:
    model = build(**changes)
    with torch.no_grad():
        for _, bias in model.router_biases():
            bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


def _step(model: CausalLM) -> EagerStep:
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    assert usable(model.config, tensors) is None
    return EagerStep(model.config, tensors, model.rope.inv_freq, model.rope.amplitude, model.rope.softmax_scale)


def _storage(config: ModelConfig) -> torch.Tensor:
    return torch.full((config.num_blocks, 12, 4, config.kv_lora_rank + config.qk_rope_head_dim), float("nan"))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_states_logits_and_modules_are_the_models(name: str) -> None:
    model = _model(**SHAPES[name])
    config, step = model.config, _step(model)
    ids = torch.randint(0, config.vocab_size, (19,), generator=torch.Generator().manual_seed(2))
    positions, tables, storage = torch.arange(19), torch.tensor([[7, 2, 9, 0, 4]]).expand(19, 5), _storage(config)
    out = model(ids.unsqueeze(0), mtp=True)
    moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    routes = torch.empty(moe, 19, config.num_experts_per_tok, dtype=torch.int64)
    hidden = step.trunk(ids, positions, tables, storage, routes)
    torch.testing.assert_close(hidden, out.hidden[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(step.logits(hidden), model.logits(out.hidden)[0], atol=2e-4, rtol=1e-4)
    for layer, routing in enumerate(out.routings[:moe]):
        assert torch.equal(routes[layer].sort()[0], routing.indices.sort()[0])
    previous = hidden
    for module in range(config.num_nextn_predict_layers):
        previous = step.mtp(module, previous[: 18 - module], ids[1 + module :], positions[: 18 - module], tables[: 18 - module], storage)
        torch.testing.assert_close(previous, out.mtp_hidden[module][0], atol=5e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_behind_the_last_position_changes_nothing() -> None:
    """A scored row whose width is rounded up reaches past max_position_embeddings; what nobody reads must not stop the rest."""
    model = _model(max_position_embeddings=16)
    config, step = model.config, _step(model)
    ids, positions, tables = torch.arange(19) + 3, torch.arange(19), torch.tensor([[7, 2, 9, 0, 4]]).expand(19, 5)
    hidden = step.trunk(ids, positions, tables, _storage(config))
    torch.testing.assert_close(hidden[:16], model(ids[:16].unsqueeze(0)).hidden[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["T0", "odd widths"])
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: how many rows, and whether their blocks follow one another in the pool."""
    monkeypatch.setattr(eager, "_PART", 1000)  # several parts a matrix
    model = _model(**SHAPES[name])
    config, step = model.config, _step(model)
    ids = torch.randint(0, config.vocab_size, (23,), generator=torch.Generator().manual_seed(3))
    tables = torch.tensor([[5, 1, 8, 3, 11, 0]]).expand(23, 6)
    first = _storage(config)
    want = torch.cat([step.trunk(ids[i : i + 1], torch.tensor([i]), tables[:1], first) for i in range(23)])
    for cuts in ([23], [1, 22], [7, 7, 9], [16, 3, 4], [2] * 11 + [1]):
        for table in (tables, torch.arange(6).expand(23, 6)):
            storage, got, at = _storage(config), [], 0
            for count in cuts:
                got.append(step.trunk(ids[at : at + count], torch.arange(at, at + count), table[:count], storage))
                at += count
            assert torch.equal(torch.cat(got), want), (cuts, table[0])
    logits = step.logits(want)
    for i in range(23):
        assert torch.equal(step.logits(want[i : i + 1])[0], logits[i])


def test_what_it_cannot_take_is_said() -> None:
    tensors = dict(build().state_dict())
    assert "bfloat16" in (usable(t0(), {**tensors, "model.norm.weight": tensors["model.norm.weight"].bfloat16()}) or "")
    assert "plain matrices" in (usable(t0(), {"model.layers.0.mlp.codes": torch.zeros(1)}) or "")


def test_the_engine_takes_it_without_the_compiled_step() -> None:
    runner = Engine(build(), compiled=False).runner
    assert isinstance(runner._step, EagerStep) and runner.why_not == "switched off"
