"""Stacked experts are seen one by one, under global numbers, without a copy."""

from __future__ import annotations

import torch

from rorqual.checkpoint.logical import logical_tensors, split_experts
from rorqual.checkpoint.names import expected
from rorqual.model.transformer import CausalLM
from tests.tiny import t0


def test_views_share_memory_with_the_stack() -> None:
    gate_up, down, other = torch.arange(2 * 6 * 4.0).view(2, 6, 4), torch.arange(2 * 4 * 3.0).view(2, 4, 3), torch.ones(3)
    stem = "ema.model.layers.7.mlp.experts"
    views = split_experts({f"{stem}.gate_up_proj.weight": gate_up, f"{stem}.down_proj.weight": down, "x": other}, first_expert=10)
    assert set(views) == {"x"} | {f"{stem}.{e}.{part}_proj.weight" for e in (10, 11) for part in ("gate", "up", "down")}
    assert torch.equal(views[f"{stem}.11.gate_proj.weight"], gate_up[1, :3])
    assert torch.equal(views[f"{stem}.11.up_proj.weight"], gate_up[1, 3:])
    assert torch.equal(views[f"{stem}.10.down_proj.weight"], down[0])
    views[f"{stem}.10.up_proj.weight"].fill_(-1)
    assert (gate_up[0, 3:] == -1).all() and (gate_up[0, :3] >= 0).all() and views["x"] is other


def test_shared_experts_are_not_taken_for_stacked_ones() -> None:
    name = "model.layers.1.mlp.shared_experts.down_proj.weight"
    assert list(split_experts({name: torch.zeros(2, 2)})) == [name]


def test_a_model_has_the_official_names_and_shapes() -> None:
    for config in (t0(), t0(q_lora_rank=None, tie_word_embeddings=True, num_nextn_predict_layers=2, n_shared_experts=2)):
        with torch.device("meta"):
            model = CausalLM(config)
        views = logical_tensors(model)
        assert {name: tuple(value.shape) for name, value in views.items()} == dict(expected(config))
        assert not any(value.requires_grad for value in views.values())
        assert set(logical_tensors(model, "ema.")) == {f"ema.{name}" for name in views}
