"""Recomputing changes nothing but memory: same gradients to the bit, same counts, fewer bytes kept."""

from __future__ import annotations

import pytest
import torch

from rorqual.errors import ConfigError
from rorqual.model.transformer import CausalLM
from rorqual.parallel import recompute
from rorqual.train.loss import StepLoss, compute_loss
from tests.tiny import t0

ALL = ("norms", "mla_up", "swiglu")


def step(policy: tuple[str, ...], **changes: object) -> tuple[StepLoss, list[torch.Tensor], int]:
    """One loss with its gradients, and the bytes that distinct storages kept for the backward pass."""
    model = CausalLM(t0(initializer_range=0.1, **changes))
    model.init_weights(0)
    recompute.apply(model, policy)
    ids = torch.randint(0, 256, (4, 33), generator=torch.Generator().manual_seed(0))
    kept: dict[int, int] = {}
    inner = torch.autograd.graph.saved_tensors_hooks

    class Counting(inner):  # counts what the region's own hooks decide to keep
        def __init__(self, pack, unpack):  # type: ignore[no-untyped-def]
            def counted(tensor: torch.Tensor) -> object:
                packed = pack(tensor)
                if isinstance(packed, torch.Tensor):
                    kept[packed.untyped_storage().data_ptr()] = packed.untyped_storage().nbytes()
                return packed

            super().__init__(counted, unpack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", Counting)
        with Counting(lambda t: t, lambda t: t):
            loss = compute_loss(model, ids[:, :-1], ids[:, 1:], num_targets=128, mtp_loss_weight=0.3, aux_loss_alpha=0.1)
    loss.loss.backward()
    return loss, [p.grad for p in model.parameters()], sum(kept.values())


@pytest.mark.parametrize("policy", [("norms",), ("mla_up",), ("swiglu",), ALL], ids=str)
@pytest.mark.parametrize("rank", [48, None])
def test_same_to_the_bit_in_less_memory(policy: tuple[str, ...], rank: int | None) -> None:
    plain, plain_grads, plain_bytes = step((), q_lora_rank=rank)
    loss, grads, kept = step(policy, q_lora_rank=rank)
    assert torch.equal(plain.loss, loss.loss)
    assert torch.equal(plain.loads, loss.loads)
    assert all(torch.equal(a, b) for a, b in zip(plain_grads, grads, strict=True))
    assert kept < plain_bytes


def test_the_gradient_may_be_taken_twice() -> None:
    model = CausalLM(t0(initializer_range=0.1))
    model.init_weights(0)
    recompute.apply(model, ALL)
    loss = model(torch.arange(20).view(2, 10)).hidden.square().sum()
    first = torch.autograd.grad(loss, model.model.embed_tokens.weight, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, model.model.embed_tokens.weight)[0])


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="'attention'.*'norms', 'mla_up', 'swiglu'"):
        recompute.apply(CausalLM(t0()), ("attention",))
