"""The whole model: names, sizes beyond the 671B ratios, initialisation, padding, and ties."""

from __future__ import annotations

import pytest
import torch

from rorqual.model.transformer import CausalLM
from rorqual.planner.params import count
from rorqual.train.loss import compute_loss
from tests.tiny import t0

SIZES = [
    {},
    {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24},
    {"n_shared_experts": 2},
    {"n_shared_experts": 0},
    {"vocab_size": 259},
    {"first_k_dense_replace": 0},
    {"first_k_dense_replace": 3},
    {"first_k_dense_replace": 3, "num_nextn_predict_layers": 0},
    {"moe_layer_freq": 2},
    {"num_nextn_predict_layers": 0},
    {"num_nextn_predict_layers": 2},
    {"q_lora_rank": None},
    {"tie_word_embeddings": True},
    {"topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
    {"n_routed_experts": 0},
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_size_trains_a_step_and_is_counted(sizes: dict[str, object]) -> None:
    model = CausalLM(t0(**sizes))
    model.init_weights(0)
    ids = torch.randint(0, 256, (2, 7), generator=torch.Generator().manual_seed(0))
    loss = compute_loss(model, ids[:, :-1], ids[:, 1:], num_targets=12, mtp_loss_weight=0.3, aux_loss_alpha=1e-4)
    loss.loss.backward()
    assert torch.isfinite(loss.loss) and all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert loss.layers == model.config.moe_layers
    counted = count(model.config)
    held = sum(p.numel() for p in model.parameters()) + sum(b.numel() for _, b in model.router_biases())
    assert counted.total + counted.mtp == held


def test_initialisation_follows_the_configuration() -> None:
    model = CausalLM(t0(initializer_range=0.006))
    model.init_weights(0)
    for name, parameter in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            assert (parameter == 0).all()
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            assert float(parameter.std()) == pytest.approx(0.006, rel=0.15), name
            assert float(parameter.mean()) == pytest.approx(0.0, abs=0.001), name
    again = CausalLM(t0(initializer_range=0.006))
    again.init_weights(0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    experts = model.model.layers[1].mlp.experts.down_proj.weight
    assert not torch.equal(experts[0], experts[1])


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        model = CausalLM(t0())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert [name for name in model.state_dict() if "layers.3." in name and "mlp" not in name and "self_attn" not in name] == [
        "model.layers.3.input_layernorm.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.3.enorm.weight",
        "model.layers.3.hnorm.weight",
        "model.layers.3.eh_proj.weight",
        "model.layers.3.shared_head.norm.weight",
    ]


def test_tied_head_is_one_storage() -> None:
    model = CausalLM(t0(tie_word_embeddings=True))
    assert model.head_weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in model.state_dict()


def test_padding_changes_nothing() -> None:
    """Rows of 9 and 5 real tokens, padded to 9 with garbage: hidden states, counts and MTP as if alone."""
    model = CausalLM(t0(initializer_range=0.1))
    model.init_weights(0)
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
    out = model(ids, token_mask=real, mtp=True)
    alone = [model(ids[:1], mtp=True), model(ids[1:, :5], mtp=True)]
    torch.testing.assert_close(out.hidden[0], alone[0].hidden[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.hidden[1, :5], alone[1].hidden[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out.mtp_hidden[0][1, :4], alone[1].mtp_hidden[0][0], atol=1e-5, rtol=1e-4)
    assert torch.equal(out.loads, alone[0].loads + alone[1].loads)


@pytest.mark.peer
@pytest.mark.parametrize("sizes", [{}, {"q_lora_rank": None}, {"rope_scaling": None, "n_group": 1, "topk_group": 1}], ids=str)
def test_gradients_equal_transformers(sizes: dict[str, object], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Same weights, same batch: every gradient of the main loss agrees with transformers' autograd."""
    from transformers import DeepseekV3ForCausalLM

    from rorqual.checkpoint import hf

    model = CausalLM(t0(initializer_range=0.05, num_nextn_predict_layers=0, **sizes))
    model.init_weights(0)
    hf.export(model, None, tmp_path / "out")
    peer = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(0))
    compute_loss(model, ids[:, :-1], ids[:, 1:], num_targets=64, mtp_loss_weight=0.0, aux_loss_alpha=0.0).loss.backward()
    logits = peer(input_ids=ids[:, :-1]).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].reshape(-1)).backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in model.named_parameters():
        other = theirs[name.replace("_proj.weight", "_proj") if ".experts." in name and "shared" not in name else name]
        torch.testing.assert_close(parameter.grad, other.grad, atol=1e-6, rtol=1e-3, msg=name)
