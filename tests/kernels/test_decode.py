"""The compiled decode step: the model's own results, rows independent of each other to the bit, every router and shape."""

from __future__ import annotations

from array import array

import pytest
import torch

from rorqual.config import ModelConfig
from rorqual.kernels import decode, native, sampling
from rorqual.kernels.decode import DecodeStep, Draws, Rows, usable, whole
from rorqual.model.transformer import CausalLM
from tests.tiny import t0

pytestmark = pytest.mark.skipif(native.library().library is None, reason=f"no compiled kernels: {native.library().detail}")

SHAPES = {
    "T0": {},
    "V2-Lite's kind": {"q_lora_rank": None, "n_group": 1, "topk_group": 1, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, "n_shared_experts": 2},
    "V2's kind": {"scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False},
    "groups of one expert": {"n_group": 8, "topk_group": 4},
    "odd widths": {"v_head_dim": 20, "kv_lora_rank": 24, "hidden_size": 52, "moe_intermediate_size": 37, "intermediate_size": 75, "vocab_size": 259, "qk_rope_head_dim": 6},
    "tied, no MTP": {"tie_word_embeddings": True, "num_nextn_predict_layers": 0},
    "no shared expert, all MoE": {"n_shared_experts": 0, "first_k_dense_replace": 0},
    "dense": {"n_routed_experts": 0, "num_nextn_predict_layers": 0},
    "two MTP modules": {"num_nextn_predict_layers": 2},
}  # fmt: skip


def build(config: ModelConfig) -> CausalLM:
    model = CausalLM(config)
    model.init_weights(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20.0 if parameter.dim() > 1 else 1.0)
        for _, bias in model.router_biases():
            bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return model


def step_of(model: CausalLM) -> DecodeStep:
    tensors = dict(model.state_dict())
    assert usable(model.config, tensors) is None
    return DecodeStep(model.config, tensors, model.rope.inv_freq, model.rope.amplitude, model.rope.softmax_scale)


def storage_of(config: ModelConfig, blocks: int = 12, size: int = 4) -> torch.Tensor:
    return torch.full((config.num_blocks, blocks, size, config.kv_lora_rank + config.qk_rope_head_dim), float("nan"))


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_states_logits_and_modules_are_the_models(name: str) -> None:
    model = build(t0(**SHAPES[name]))
    config, step = model.config, step_of(model)
    ids = torch.randint(0, config.vocab_size, (19,), generator=torch.Generator().manual_seed(2))
    positions, tables, storage = torch.arange(19), torch.tensor([[7, 2, 9, 0, 4]]).expand(19, 5), storage_of(config)
    out = model(ids.unsqueeze(0), mtp=True)
    hidden = step.trunk(ids, positions, tables, storage)
    torch.testing.assert_close(hidden, out.hidden[0], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(step.logits(hidden), model.logits(out.hidden)[0], atol=2e-4, rtol=1e-4)
    previous = hidden
    for module in range(config.num_nextn_predict_layers):
        previous = step.mtp(module, previous[: 18 - module], ids[1 + module :], positions[: 18 - module], tables[: 18 - module], storage)
        torch.testing.assert_close(previous, out.mtp_hidden[module][0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_a_row_does_not_depend_on_the_others(threads: int) -> None:
    """Bit for bit: one by one, in any cut, in any order, among strangers, on any number of threads."""
    model = build(t0())
    config, step = model.config, step_of(model)
    generator = torch.Generator().manual_seed(3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ids = torch.randint(0, config.vocab_size, (23,), generator=generator)
        tables = torch.tensor([[5, 1, 8, 3, 11, 0]]).expand(23, 6)
        want_storage = storage_of(config)
        want = torch.cat([step.trunk(ids[i : i + 1], torch.tensor([i]), tables[:1], want_storage) for i in range(23)])
        for cuts in ([23], [1, 22], [7, 7, 9], [16, 3, 4], [2] * 11 + [1]):
            storage, got, at = storage_of(config), [], 0
            for count in cuts:
                got.append(step.trunk(ids[at : at + count], torch.arange(at, at + count), tables[:count], storage))
                at += count
            assert torch.equal(torch.cat(got), want), cuts
            assert torch.equal(storage.nan_to_num(), want_storage.nan_to_num())
        others = torch.randint(0, config.vocab_size, (40,), generator=generator)
        mixed_ids = torch.cat([others[:20], ids[22:], others[20:]])
        mixed_positions = torch.cat([torch.arange(20), torch.tensor([22]), torch.arange(20)])
        mixed_tables = torch.tensor([[2, 4, 6, 7, 9, 9]]).repeat(41, 1)
        mixed_tables[20] = tables[0]
        mixed_tables[21:] = torch.tensor([10, 10, 10, 10, 10, 10])
        spare = torch.cat([want_storage, torch.zeros_like(want_storage)], dim=1)
        mixed_tables[21:] = torch.tensor([12, 13, 14, 15, 16, 17])
        assert torch.equal(step.trunk(mixed_ids, mixed_positions, mixed_tables, spare)[20], want[22])
        logits = step.logits(want)
        assert all(torch.equal(step.logits(want[i : i + 1])[0], logits[i]) for i in range(23))
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_tokens_are_drawn_in_the_same_call() -> None:
    """Of the rows that are asked for: what kernels.sampling draws from the same logits, greedy and by temperature; -1 for NaN."""
    model = build(t0())
    step, ids, places, tables = step_of(model), torch.arange(5), torch.arange(5), torch.tensor([[7, 2]]).expand(5, 2)
    hidden = step.trunk(ids, places, tables, storage_of(model.config))
    logits, keys, temperatures = step.logits(hidden)[[1, 4]], [11, 12], [0.0, 1.5]
    draws = Draws(whole([1, 4]), whole(keys), array("d", temperatures), 200)
    made = step.forward(Rows.of(ids, places, tables), storage_of(model.config), draws)
    assert torch.equal(made.states, hidden) and made.logits is not None and torch.equal(made.logits, logits)
    assert made.tokens == sampling.draw(logits, keys, temperatures, 200).tolist() and made.tokens[0] == int(logits[0, :200].argmax())
    assert step.forward(Rows.of(ids, places, tables), storage_of(model.config), Draws(whole([0]))).tokens is None
    model.lm_head.weight[3, 3] = float("nan")
    step.refresh()
    assert step.forward(Rows.of(ids, places, tables), storage_of(model.config), draws).tokens == [-1, -1]


@pytest.mark.parametrize("threads", [1, 2])
@torch.no_grad()
def test_a_step_and_the_next_drafts_in_one_call(threads: int) -> None:
    """Bit for bit what two calls give: a right draft, a wrong one, none, at temperatures; entries of rows that are not kept are not written."""
    model = build(t0())
    config, rope, before = model.config, model.rope, torch.get_num_threads()
    step = DecodeStep(config, dict(model.state_dict()), rope.inv_freq, rope.amplitude, rope.softmax_scale, drafts="int8")
    tables, first = torch.tensor([[5, 1, 8], [3, 11, 0], [2, 4, 6]]), torch.tensor([6, 3, 9])
    want, prompt = storage_of(config), torch.arange(40, 52)
    torch.set_num_threads(threads)
    try:
        for table, count in zip(tables, first.tolist(), strict=True):
            hidden = step.trunk(prompt[:count], torch.arange(count), table.expand(count, 3), want)
            step.mtp(0, hidden, prompt[1 : count + 1], torch.arange(count), table.expand(count, 3), want)
        got, temperatures = want.clone(), [0.0, 0.7, 1.5]
        keys = [[0, 0, 0], [21, 22, 23], [31, 32, 33]]

        def alone(sequence: int, ids: list[int]) -> decode.Made:
            count = len(ids)
            rows = Rows.of(torch.tensor(ids), first[sequence] + torch.arange(count), tables[sequence].expand(count, 3))
            return step.forward(
                rows,
                want,
                Draws(whole(range(count)), whole(keys[sequence][:count]), array("d", temperatures[sequence : sequence + 1] * count), 200),
            )

        right = alone(0, [7]).tokens
        assert right is not None
        pieces = [[7, right[0]], [8, 199], [9]]
        made = [alone(sequence, ids) for sequence, ids in enumerate(pieces)]
        drafts, kept = [], [2, 1, 1]
        for sequence, (one, count) in enumerate(zip(made, kept, strict=True)):
            assert one.tokens is not None and (one.tokens[0] == pieces[sequence][-1]) == (count == 2)
            rows = Rows.of(torch.tensor(one.tokens[:count]), first[sequence] + torch.arange(count), tables[sequence].expand(count, 3))
            draw = Draws(whole([count - 1]), whole([keys[sequence][count]]), array("d", temperatures[sequence : sequence + 1]), 200)
            drafts += step.forward(rows, want, draw, module=0, hidden=one.states[:count]).tokens or []
        lines = [n for s, ids in enumerate(pieces) for n in (int(first[s]), len(ids), 3 * s, ids[0], ids[-1], *keys[s])]
        results, logits = step.advance(lines, tables.flatten().tolist(), temperatures, 10, 200, got)
        assert results == [token for one in made for token in one.tokens or []] + kept + drafts
        assert torch.equal(got.nan_to_num(), want.nan_to_num())
        alone(2, [9])
        assert torch.equal(logits[4], step.logits(made[2].states)[0])
        model.lm_head.weight[3, 3] = float("nan")
        step.refresh()
        assert step.advance(lines, tables.flatten().tolist(), temperatures, 10, 200, got)[0][:5] == [-1] * 5
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_rows_whose_states_are_not_wanted_leave_their_entries() -> None:
    """And the others' states are the same to the bit; INT8 drafts come near and leave the trunk as it is."""
    model = build(t0())
    config, step = model.config, step_of(model)
    rope = model.rope
    small = DecodeStep(config, dict(model.state_dict()), rope.inv_freq, rope.amplitude, rope.softmax_scale, drafts="int8")
    ids, places, tables = torch.arange(3, 12), torch.arange(9), torch.tensor([[7, 2, 9]]).expand(9, 3)
    storage = storage_of(config)
    hidden = step.trunk(ids, places, tables, storage)
    want = step.mtp(0, hidden, ids, places, tables, storage)
    for select in ([8], [2, 5], []):
        other = storage_of(config)
        rows = Rows.of(ids, places, tables)
        made = step.forward(rows, other, module=0, hidden=hidden, select=whole(select))
        assert torch.equal(made.states, want[select]) and torch.equal(other[-1].nan_to_num(), storage[-1].nan_to_num())
    other = storage_of(config)
    assert torch.equal(small.trunk(ids, places, tables, other), hidden) and not small.lossy
    near = small.mtp(0, hidden, ids, places, tables, other)
    assert 0 < float((near - want).norm() / want.norm()) < 0.1
    for parameter in model.parameters():
        parameter.mul_(1.01)
    small.refresh()
    assert not torch.equal(small.mtp(0, hidden, ids, places, tables, other), near)


def test_what_it_cannot_take_is_said() -> None:
    model = build(t0())
    tensors = dict(model.state_dict())
    assert "float16" in (usable(model.config, {**tensors, "model.norm.weight": tensors["model.norm.weight"].half()}) or "")
    assert "plain FP32" in (usable(model.config, {"model.layers.0.mlp.codes": torch.zeros(1)}) or "")


@pytest.mark.parametrize("weights", ["fp32", "bf16", "fp16", "int8"])
@torch.no_grad()
def test_bf16_models_and_lossy_types(weights: str) -> None:
    """Weights of BF16 values give FP32's results from BF16 panels to the bit; FP16 and INT8 come near."""
    model = build(t0())
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16().float())
    exact, ids, positions, tables = step_of(model), torch.arange(9), torch.arange(9), torch.tensor([[7, 2, 9]]).expand(9, 3)
    want = exact.logits(exact.trunk(ids, positions, tables, storage_of(model.config)))
    kept = {name: value if "bias" in name else value.bfloat16() for name, value in model.state_dict().items()}
    rope = model.rope
    step = DecodeStep(model.config, kept, rope.inv_freq, rope.amplitude, rope.softmax_scale, weights)
    got = step.logits(step.trunk(ids, positions, tables, storage_of(model.config)))
    if weights in ("fp32", "bf16"):
        assert torch.equal(got, want)
    else:
        error = float((got - want).norm() / want.norm())
        assert 0 < error < {"fp16": 1e-3, "int8": 0.2}[weights], error


@torch.no_grad()
def test_refresh_follows_the_weights() -> None:
    model = build(t0())
    step, ids, places, tables = step_of(model), torch.arange(3), torch.arange(3), torch.tensor([[1]]).expand(3, 1)
    for parameter in model.parameters():
        parameter.mul_(1.01)
    step.refresh()
    torch.testing.assert_close(
        step.trunk(ids, places, tables, storage_of(model.config)), model(ids.unsqueeze(0)).hidden[0], atol=2e-5, rtol=1e-4
    )


def test_copies_that_do_not_fit_are_not_made(monkeypatch):
    model = CausalLM(t0())
    model.init_weights(0)
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    monkeypatch.setattr(decode, "available_bytes", lambda: 100_000)
    assert "would leave too little of the 0.0 GB that are free" in str(usable(model.config, tensors))
    monkeypatch.setattr(decode, "available_bytes", lambda: None)
    assert usable(model.config, tensors) is None or native.library().library is None
