"""Adapters by hand, their gradient against the merged matrix's, over FP32, BF16 and FP8, on experts, merged in place and as a copy."""

from __future__ import annotations

import pytest
import torch

from rorqual.adapters import lora
from rorqual.adapters.config import LoraConfig
from rorqual.adapters.lora import LoraGroupedLinear, LoraLinear
from rorqual.errors import ConfigError
from rorqual.fp8 import linear as fp8_linear
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.model.layers import Linear
from rorqual.model.transformer import CausalLM
from rorqual.train.loss import compute_loss
from tests.tiny import t0

ALL = ("attention", "ffn", "experts")


def model(seed: int = 0, **changes) -> CausalLM:
    made = CausalLM(t0(initializer_range=0.1, **changes))
    made.init_weights(seed)
    return made


def stir(adapted: CausalLM, seed: int = 1, size: float = 0.05) -> CausalLM:
    """Gives every B random values, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in lora.adapted(adapted).values():
            layer.lora_B.weight.normal_(0.0, size, generator=generator)
    return adapted


def hidden(one: CausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return one(ids, mtp=True).hidden


IDS = torch.arange(24).view(2, 12) * 7 % 256


def test_one_layer_by_hand():
    """W = [[1, 2]], A = [[3, 0]], B = [[2]], scale 2/1: y = x1 + 2 x2 + 2 * 2 * 3 x1."""
    base = Linear(2, 1)
    base.weight.data = torch.tensor([[1.0, 2.0]])
    layer = LoraLinear(base.requires_grad_(False), 1, 2.0)
    layer.lora_A.weight.data, layer.lora_B.weight.data = torch.tensor([[3.0, 0.0]]), torch.tensor([[2.0]])
    assert layer(torch.tensor([[1.0, 10.0]])).tolist() == [[33.0]] and layer.dense_weight().tolist() == [[13.0, 2.0]]
    layer(torch.tensor([[1.0, 10.0]])).sum().backward()
    assert layer.lora_A.weight.grad.tolist() == [[4.0, 40.0]] and layer.lora_B.weight.grad.tolist() == [[6.0]] and base.weight.grad is None


@pytest.mark.parametrize("targets", [("attention", "ffn"), ALL])
def test_a_new_adapter_changes_nothing_and_is_the_same_for_a_seed(targets):
    plain, one, two = model(), *(lora.apply(model(), LoraConfig(rank=4, targets=targets)) for _ in range(2))
    torch.testing.assert_close(hidden(one, IDS), hidden(plain, IDS), rtol=0, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(lora.trainable(one).values(), lora.trainable(two).values(), strict=True))
    names = set(lora.trainable(one))
    assert (
        "model.layers.0.self_attn.kv_b_proj.lora_A.weight" in names and "model.layers.3.mlp.shared_experts.up_proj.lora_B.weight" in names
    )
    assert ("model.layers.1.mlp.experts.gate_up_proj.lora_A.weight" in names) == ("experts" in targets)
    assert all(".lora_" in name for name in names)
    with pytest.raises(ConfigError, match="adapters already"):
        lora.apply(one, LoraConfig())
    with pytest.raises(ConfigError, match="no projection"):
        lora.apply(model(n_routed_experts=0), LoraConfig(targets=("experts",)))


@pytest.mark.parametrize("targets", [("attention", "ffn"), ALL])
def test_loss_and_gradient_are_those_of_the_merged_weights(targets):
    """dL/dA = scale B^T dL/dW and dL/dB = scale dL/dW A^T, with dL/dW of the plain model that holds W + scale B A."""
    adapted = stir(lora.apply(model(), LoraConfig(rank=3, alpha=6.0, targets=targets)))
    plain = model()
    with torch.no_grad():
        for name, layer in lora.adapted(adapted).items():
            plain.get_submodule(name).weight.add_(layer.delta())
    losses = []
    for one in (adapted, plain):
        out = compute_loss(one, IDS[:, :-1], IDS[:, 1:], num_targets=22, mtp_loss_weight=0.3, aux_loss_alpha=0.01)
        out.loss.backward()
        losses.append(out.loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, layer in lora.adapted(adapted).items():
        whole = plain.get_submodule(name).weight.grad
        a, b = layer.lora_A.weight, layer.lora_B.weight
        torch.testing.assert_close(a.grad, 2.0 * b.detach().transpose(-1, -2) @ whole, rtol=2e-3, atol=2e-5)
        torch.testing.assert_close(b.grad, 2.0 * whole @ a.detach().transpose(-1, -2), rtol=2e-3, atol=2e-5)
    assert all(p.grad is None for name, p in adapted.named_parameters() if ".lora_" not in name)


def test_gradients_pass_through_fp8_weights():
    """An FP8 base gives the gradients of the FP32 model that holds its dequantised values."""
    config = t0(hidden_size=64, quantization_config={"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [32, 32]})
    base = fp8_linear.empty_model(config)
    fp8_linear.fill_random(base, std=0.1)
    twin = CausalLM(config.with_(quantization_config=None))
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            place, _, _ = name.rpartition(".")
            module = base.get_submodule(place)
            if isinstance(module, fp8_linear.Fp8GroupedLinear):
                parameter.copy_(torch.stack([module.expert_weight(expert) for expert in range(module.num_groups)]))
            elif isinstance(module, fp8_linear.Fp8Linear):
                parameter.copy_(module.dense_weight())
            else:
                parameter.copy_(module.weight)
        for (_, mine), (_, theirs) in zip(twin.router_biases(), base.router_biases(), strict=True):
            mine.copy_(theirs)
    gradients = []
    for one in (base, twin):
        stir(lora.apply(one, LoraConfig(rank=2, targets=ALL)))
        compute_loss(one, IDS[:, :-1], IDS[:, 1:], num_targets=22, mtp_loss_weight=0.3, aux_loss_alpha=0.0).loss.backward()
        gradients.append({name: p.grad for name, p in lora.trainable(one).items()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)
    with pytest.raises(ConfigError, match="kept in FP8"):
        lora.merge(base)
    with pytest.raises(ConfigError, match="fp32 or bf16"):
        lora.merged_copy(base)


def test_a_model_without_query_compression_or_experts_has_its_own_places():
    plain = lora.apply(model(q_lora_rank=None, n_routed_experts=0, num_nextn_predict_layers=0), LoraConfig(rank=2))
    names = {name.split(".", 3)[3] for name in lora.adapted(plain)}
    assert names == {f"self_attn.{n}" for n in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")} | {
        f"mlp.{n}_proj" for n in ("gate", "up", "down")
    }


def test_adapters_stay_fp32_over_bf16():
    one = lora.apply(model().to(torch.bfloat16), LoraConfig(rank=2, targets=ALL))
    assert {p.dtype for p in lora.trainable(one).values()} == {torch.float32}
    compute_loss(one, IDS[:, :-1], IDS[:, 1:], num_targets=22, mtp_loss_weight=0.3, aux_loss_alpha=0.0).loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in lora.trainable(one).values())


def test_merged_in_place_and_as_a_copy():
    adapted = stir(lora.apply(model(), LoraConfig(rank=4, targets=ALL)))
    wanted = hidden(adapted, IDS)
    copy = lora.merged_copy(adapted)
    torch.testing.assert_close(hidden(copy, IDS), wanted, rtol=1e-4, atol=1e-5)
    assert copy.model.embed_tokens.weight.data_ptr() == adapted.model.embed_tokens.weight.data_ptr()  # shared, not copied
    held = copy.get_submodule("model.layers.0.self_attn.o_proj").weight.data_ptr()
    stir(adapted, seed=2)
    assert lora.merged_copy(adapted, into=copy) is copy and copy.get_submodule("model.layers.0.self_attn.o_proj").weight.data_ptr() == held
    wanted = hidden(adapted, IDS)
    torch.testing.assert_close(hidden(copy, IDS), wanted, rtol=1e-4, atol=1e-5)
    plain = lora.merge(adapted)
    assert not lora.adapted(plain) and {type(m) for m in plain.modules()} == {type(m) for m in model().modules()}
    torch.testing.assert_close(hidden(plain, IDS), wanted, rtol=1e-4, atol=1e-5)


def test_the_engine_decodes_the_merged_copy_as_the_adapted_model_predicts():
    adapted = stir(lora.apply(model(), LoraConfig(rank=4, targets=ALL)), size=0.2)
    prompt = list(range(40, 50))
    answer = LLM.from_model(lora.merged_copy(adapted)).generate([prompt], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    ids = list(answer[0].outputs[0].token_ids)
    with torch.no_grad():
        logits = adapted.logits(adapted(torch.tensor([[*prompt, *ids]])).hidden)[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_grouped_layers_without_rows_give_zero_gradients():
    one = lora.apply(model(), LoraConfig(rank=2, targets=("experts",)))
    layer = one.get_submodule("model.layers.1.mlp.experts.down_proj")
    assert isinstance(layer, LoraGroupedLinear)
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    offs = torch.tensor([0, 3, 3, 3, 3, 3, 3, 3], dtype=torch.int32)
    torch.testing.assert_close(layer(x, offs).detach(), layer.fprop(x, offs))
    layer(x, offs).sum().backward()
    grad = layer.lora_B.weight.grad
    assert grad[1].abs().sum() > 0 and grad[[0, 2, 3, 4, 5, 6, 7]].abs().sum() == 0
