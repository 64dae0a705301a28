"""The GPU's decode step, without one: over the plain kernels here, over the Triton kernels in gpu_cases.py; with one, against the CPU."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from rorqual.errors import ConfigError, DeviceError
from rorqual.inference import engine, gpu
from rorqual.inference.gpu import GpuStep
from rorqual.inference.graphs import Recorder, Recording
from rorqual.inference.llm import LLM
from rorqual.inference.paged import PagedStorage
from rorqual.kernels import decode, rows
from rorqual.model.transformer import CausalLM
from tests.inference.models import GREEDY, agreeing, build, prompt, replaying
from tests.inference.test_eager import SHAPES
from tests.kernels.test_triton_rows import run_cases


def step_of(model: CausalLM, kernels: ModuleType, record: Recorder | None = replaying, blocks: int = 12) -> tuple[GpuStep, PagedStorage]:
    """The step over this model, and its cache in blocks of 4 in test mode."""
    with torch.no_grad():
        for _, bias in model.router_biases():
            bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    tensors, dtype = {name: value.detach() for name, value in model.state_dict().items()}, model.model.norm.weight.dtype
    storage = PagedStorage(
        model.config, blocks, num_layers=model.config.num_blocks, block_size=4, dtype=dtype, device=model.head_weight.device, poison=True,
        scratch=True,
    )  # fmt: skip
    rope = model.rope
    return GpuStep(model.config, tensors, rope.inv_freq, rope.amplitude, rope.softmax_scale, storage, kernels, record), storage


def compare(model: CausalLM, kernels: ModuleType, tolerance: float, length: int = 19) -> None:
    """States, logits, experts and modules of a prompt read as one call of rows are the model's own."""
    step, storage = step_of(model, kernels)
    config = model.config
    ids = torch.tensor(prompt(length, 2)) % config.vocab_size
    positions, tables = torch.arange(length), torch.tensor([[7, 2, 9, 0, 4]]).expand(length, 5)
    out = model(ids.unsqueeze(0), mtp=True)
    moe = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    routes = torch.empty(moe, length, config.num_experts_per_tok, dtype=torch.int64)
    hidden = step.trunk(ids, positions, tables, storage.values, routes)
    torch.testing.assert_close(hidden.float(), out.hidden[0].float(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(step.logits(hidden), model.logits(out.hidden)[0], atol=10 * tolerance, rtol=tolerance)
    for layer, routing in enumerate(out.routings[:moe]):
        assert torch.equal(routes[layer].sort()[0], routing.indices.sort()[0])
    for module, want in enumerate(out.mtp_hidden):
        some = slice(0, length - 1 - module)
        hidden = step.mtp(module, hidden[some], ids[module + 1 :], positions[some], tables[some], storage.values)
        torch.testing.assert_close(hidden.float(), want[0].float(), atol=tolerance, rtol=tolerance)


def rows_are_their_own(model: CausalLM, kernels: ModuleType) -> None:
    """Every row of a step alone, without a recording, has the bits that it has among others in a padded bucket; padding touches scratch alone."""
    step, storage = step_of(model, kernels)
    plain, other = step_of(model, kernels, None)
    ids = torch.tensor(prompt(12))
    tables = torch.tensor(
        [[3, 1, 0] + [0] * 61, [5] + [8] * 63]
    )  # as wide as a recording's: the plain kernels' softmax goes over all of it
    for one, held in ((step, storage), (plain, other)):
        one.trunk(ids[:10], torch.arange(10), tables[:1].expand(10, 64), held.values)
        one.trunk(ids[3:5], torch.arange(2), tables[1:].expand(2, 64), held.values)
    storage.values[:, storage.scratch] = float("nan")
    before = storage.values.clone()
    which, positions = torch.tensor([0, 0, 1]), torch.tensor([10, 11, 2])  # two rows of a draft chunk and another sequence: a bucket of 4
    some = torch.tensor([ids[10], ids[11], 9])
    among = step.trunk(some, positions, tables[which], storage.values)
    written = (before.nan_to_num(7) != storage.values.nan_to_num(7)).any(-1).nonzero()[:, 1:].unique(dim=0).tolist()
    assert written == [[0, 2], [0, 3], [5, 2], [storage.scratch, 0]] and among.isfinite().all()
    alone = [plain.trunk(some[i : i + 1], positions[i : i + 1], tables[which[i : i + 1]], other.values) for i in range(3)]
    assert torch.equal(among, torch.cat(alone))
    drafted = [
        one.mtp(0, among[:1], some[1:2], torch.tensor([0]), tables[:1], held.values) for one, held in ((step, storage), (plain, other))
    ]
    assert drafted[0].isfinite().all() and torch.equal(*drafted)


@pytest.mark.parametrize(
    "name", ["T0", "V2's kind", "V2-Lite's kind", "dense", "tied, no MTP", "two MTP modules", "no shared expert, all MoE"]
)
@torch.no_grad()
def test_states_logits_experts_and_modules_are_the_models(name):
    compare(build(**SHAPES[name]), rows, 1e-4)


@torch.no_grad()
def test_padding_and_neighbours_change_no_bit():
    rows_are_their_own(build(), rows)


@torch.no_grad()
def test_more_rows_than_a_bucket_and_wider_tables_than_a_recording():
    """130 rows in three calls equal 130 rows in one; a table wider than the model's context runs without a recording."""
    model = build(max_position_embeddings=256)
    step, storage = step_of(model, rows, blocks=40)
    ids, tables = torch.tensor(prompt(130)), torch.arange(33).unsqueeze(0).expand(130, 33)
    hidden = step.trunk(ids, torch.arange(130), tables, storage.values)
    torch.testing.assert_close(hidden, model(ids.unsqueeze(0)).hidden[0], atol=1e-4, rtol=1e-4)
    wide = torch.cat([tables[:1], tables[:1, -1:].expand(1, 60)], dim=1)
    again = step.trunk(ids[:1], torch.tensor([0]), wide, storage.values)
    torch.testing.assert_close(again[0], hidden[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_nothing_waits_for_the_device():
    """Tensors without values: a look at one on the host, or a tensor made on another device, would raise."""
    model = build().to("meta")
    step, storage = step_of_meta(model)
    ids = torch.empty(5, dtype=torch.int64, device="meta")
    hidden, chosen = step._body(None, None, ids, ids, torch.empty(5, 3, dtype=torch.int64, device="meta"), storage.values)
    assert hidden.shape == (5, 64) and chosen.shape == (2, 5, 2)
    assert step._body(0, hidden, ids, ids, torch.empty(5, 3, dtype=torch.int64, device="meta"), storage.values)[0].shape == (5, 64)


def step_of_meta(model: CausalLM) -> tuple[GpuStep, PagedStorage]:
    """The step over a model without values."""
    storage = PagedStorage(model.config, 4, num_layers=model.config.num_blocks, device="meta", scratch=True)
    rope = model.rope
    return GpuStep(model.config, model.state_dict(), rope.inv_freq, rope.amplitude, rope.softmax_scale, storage, rows, None), storage


@pytest.mark.parametrize("speculative", [0, 3])
def test_the_engine_over_this_step(monkeypatch, speculative):
    """Wired as on a GPU, in test mode: the tokens of the CPU's step, prompts in pieces, experts recorded; free and scratch blocks are never read."""
    prompts = [prompt(5), prompt(40, 1), prompt(90, 2)]
    want = [r.outputs[0] for r in LLM.from_model(agreeing(1), speculative=0, enable_return_routed_experts=True).generate(prompts, GREEDY)]
    monkeypatch.setattr(decode, "usable", lambda config, tensors: "as on a GPU")
    monkeypatch.setattr(gpu, "usable", lambda config, tensors: None)
    monkeypatch.setattr(gpu, "GpuStep", functools.partial(GpuStep, kernels=rows, record=replaying))
    monkeypatch.setattr(
        engine, "PagedStorage", lambda config, blocks, **options: PagedStorage(config, blocks, **{**options, "scratch": True})
    )
    made = engine.Engine(
        agreeing(1), speculative=speculative, max_num_batched_tokens=70, num_blocks=24, poison=True, enable_return_routed_experts=True
    )
    assert made.runner.path == "Triton, recorded in CUDA graphs" and made.storage.scratch == 24
    got: dict[str, list[int]] = {str(number): [] for number in range(3)}
    routes = {}
    for number, ids in enumerate(prompts):
        made.add_request(str(number), ids, GREEDY)
    while made.has_work:
        for out in made.step():
            got[out.request_id] += out.new_token_ids
            routes[out.request_id] = out.routed_experts
    for number, one in enumerate(want):
        assert got[str(number)] == one.token_ids
        assert torch.equal(routes[str(number)].sort(-1)[0], one.routed_experts.sort(-1)[0])


def test_what_it_takes():
    model = build()
    reason = gpu.usable(model.config, model.state_dict())
    assert reason is not None and "on cpu" in reason


def test_the_step_tests_itself():
    """Sound kernels pass and leave no block but scratch written; wrong ones, and a compiler that fails, are told from what they do."""
    step, storage = step_of(build(), rows)
    assert step.self_test() is None
    assert storage.values[:, : storage.scratch].isnan().all()

    def refused(*args):
        raise RuntimeError("no such instruction\nmore")

    def doubled(q, cache, tables, positions, scale, latent):
        return 2 * rows.latent_attention(q, cache, tables, positions, scale, latent)

    def rounded(x, weight, source, ends):
        return rows.expert_linear(x, weight, source, ends).bfloat16().float()

    found = {}
    for name, wrong in (("rms_norm", refused), ("latent_attention", doubled), ("expert_linear", rounded)):
        found[name] = step_of(build(), SimpleNamespace(**{**vars(rows), name: wrong}))[0].self_test()
    assert found["rms_norm"] == "RuntimeError: no such instruction"
    assert found["latent_attention"] == "attention of one token differ by 1 from plain PyTorch"
    assert re.fullmatch(r"experts of one token differ by 0\.00\d+ from plain PyTorch", found["expert_linear"] or "")

    def stale(body):
        made = replaying(body)
        return Recording(made.outputs, lambda: made.outputs[0].add_(1))

    assert step_of(build(), rows, stale)[0].self_test() == "a recording has other bits than the step"


def test_where_a_model_is_put(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (gpu.device_for("auto"), gpu.device_for("cpu")) == ("cpu", "cpu")
    for device, weights, error, words in (("cuda", None, DeviceError, "no CUDA device"), ("gpu", None, ConfigError, "is not known")):
        with pytest.raises(error, match=words):
            gpu.device_for(device, weights)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [gpu.device_for("auto", weights) for weights in (None, "bf16", "fp32", "fp8", "int8")] == ["cuda"] * 3 + ["cpu"] * 2
    with pytest.raises(ConfigError, match="are for the CPU"):
        gpu.device_for("cuda", "int8")


@pytest.mark.slow
def test_over_the_triton_kernels_in_the_interpreter():
    pytest.importorskip("triton", reason="Triton is not installed")
    assert "4 passed" in run_cases(Path(__file__).with_name("gpu_cases.py"), interpret=True)


# ---------------------------------------------------------------------- with a device


@pytest.fixture
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    pytest.importorskip("triton", reason="Triton is not installed")
    return "cuda"


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("speculative", [0, 1, 3])
def test_the_engine_answers_as_on_the_cpu(device, speculative):
    """FP32, greedy: the same tokens, alone and together, with drafts or without."""
    prompts = [prompt(5), prompt(40, 1), prompt(90, 2)]
    want = [r.outputs[0].token_ids for r in LLM.from_model(agreeing(1), speculative=0).generate(prompts, GREEDY)]
    llm = LLM.from_model(agreeing(1).to(device), speculative=speculative)
    assert llm.engine.runner.path == "Triton, recorded in CUDA graphs"
    assert [r.outputs[0].token_ids for r in llm.generate(prompts, GREEDY)] == want
    assert [llm.generate(one, GREEDY)[0].outputs[0].token_ids for one in prompts] == want


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_on_the_device_are_the_cpus(device, dtype):
    """FP32 within 1e-4, BF16 within 3% of the largest logit. Every bucket gives a row the same bits."""
    from rorqual.kernels import triton_rows

    model = build()
    ids = torch.tensor(prompt(19))
    want = model.logits(model(ids.unsqueeze(0)).hidden[0])
    model = model.to(device, dtype)
    tensors, rope = model.state_dict(), model.rope
    storage = PagedStorage(model.config, 40, num_layers=3, block_size=4, dtype=dtype, device=device, poison=True, scratch=True)
    step = GpuStep(model.config, tensors, rope.inv_freq, rope.amplitude, rope.softmax_scale, storage, triton_rows)
    table = torch.tensor([[7, 2, 9, 0, 4]], device=device)
    ids, positions = ids.to(device), torch.arange(19, device=device)
    hidden = step.trunk(ids, positions, table.expand(19, 5), storage.values)
    got = step.logits(hidden).cpu()
    assert (got - want).abs().max() < (1e-4 if dtype == torch.float32 else 0.03) * want.abs().max()
    for n in (1, 2, 3, 5, 16, 17):
        again = step.trunk(ids[19 - n :], positions[19 - n :], table.expand(n, 5), storage.values)
        assert torch.equal(again, hidden[19 - n :]), n
