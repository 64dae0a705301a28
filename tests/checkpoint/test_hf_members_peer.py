"""transformers as judge of every member: same logits from the same folder, in both directions, MTP modules included.

transformers 5.23 has no `kimi_k2`: its folder is read there with `model_type` set to deepseek_v3. It derives the size of
scale blocks from the shapes (field case F08: 448 rows with 4 scales become blocks of 112, without an error), so FP8 folders are compared
at sizes that 128 divides.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rorqual.checkpoint import hf
from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.source import FolderSource
from rorqual.inference.sampler import SamplingParams
from rorqual.model.transformer import CausalLM
from tests.checkpoint import members
from tests.checkpoint.folders import table
from tests.reference.loop import generate

pytestmark = pytest.mark.peer
IDS = torch.randint(0, 320, (2, 90), generator=torch.Generator().manual_seed(1))  # past YaRN's original length of 64
TOLERANCE = 1e-4
EVEN = {
    "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 128, "q_lora_rank": 128, "qk_nope_head_dim": 96, "qk_rope_head_dim": 128,
    "num_attention_heads": 4, "num_key_value_heads": 4,
}  # fmt: skip


@pytest.fixture
def transformers() -> Iterator[ModuleType]:
    module: ModuleType = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield module


def theirs(transformers: ModuleType, folder: Path, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    raw = json.loads((folder / "config.json").read_text())
    if raw["model_type"] == "kimi_k2":
        config = transformers.DeepseekV3Config(**{key: value for key, value in raw.items() if key != "model_type"})
        return transformers.DeepseekV3ForCausalLM.from_pretrained(folder, config=config, dtype=dtype, **arguments).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **arguments).eval()


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model.logits(model(ids).hidden) if isinstance(model, CausalLM) else model(ids).logits


@pytest.mark.parametrize("name", members.NAMES)
def test_both_read_each_other_s_folder(transformers: ModuleType, tmp_path: Path, name: str) -> None:
    folder = members.write(tmp_path / "released", name, weights="bf16")
    ours, report = hf.load(folder)
    peer = theirs(transformers, folder)
    want = logits(peer)
    assert (logits(ours) - want).abs().max() <= TOLERANCE and want.abs().max() > 1
    assert type(peer).__name__ == ("DeepseekV2ForCausalLM" if name.startswith("v2") else "DeepseekV3ForCausalLM")
    # their save_pretrained to us
    peer.save_pretrained(tmp_path / "theirs")
    back, report = hf.load(tmp_path / "theirs")
    assert report.skipped == [] and back.config.num_nextn_predict_layers == 0
    assert torch.equal(logits(back), logits(ours))
    # our export to them
    again = theirs(transformers, hf.export(ours, None, tmp_path / "ours", shard_size=2_000_000))
    assert torch.equal(logits(again), want)


@pytest.mark.parametrize("name", members.KIMI)
def test_latent_norms_take_the_epsilon_of_the_configuration(transformers: ModuleType, tmp_path: Path, name: str) -> None:
    """Readers disagree where `rms_norm_eps` is not 1e-6: transformers' latent norms always have 1e-6, ours and vLLM's the configured one."""
    folder = members.write(tmp_path, name, weights="bf16", rms_norm_eps=1e-2)
    ours, _ = hf.load(folder)
    want = logits(theirs(transformers, folder))
    assert (logits(ours) - want).abs().max() > 1e-2
    for block in ours.model.layers:
        block.self_attn.kv_a_layernorm.eps = 1e-6
        if ours.config.q_lora_rank is not None:
            block.self_attn.q_a_layernorm.eps = 1e-6
    assert (logits(ours) - want).abs().max() <= TOLERANCE


@pytest.mark.parametrize("name", members.KIMI)
def test_ids_at_the_end_of_a_large_vocabulary(transformers: ModuleType, tmp_path: Path, name: str) -> None:
    raw = members.PUBLISHED[name]
    changes = {key: raw[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    folder = members.write(tmp_path, name, weights="bf16", hidden_size=16, moe_intermediate_size=16, **changes)
    ids = torch.tensor([[raw["bos_token_id"], 163839, 5, raw["eos_token_id"], 128000, 163838]])
    ours = hf.load(folder)[0]
    want = logits(theirs(transformers, folder), ids)
    assert want.shape[-1] == 163840 and (logits(ours, ids) - want).abs().max() <= TOLERANCE
    assert generate(ours, ids.tolist(), SamplingParams(max_tokens=1, temperature=0.0)).completions[0].token_ids == [
        int(want[0, -1].argmax())
    ]


@pytest.mark.parametrize(
    ("name", "scales"), [("v3_671b", "f32"), ("v3_671b", "bf16"), ("v3_1", "f32"), ("v3_1", "e8m0"), ("kimi_k2", "f32")]
)
def test_both_dequantise_to_the_same_logits(transformers: ModuleType, tmp_path: Path, name: str, scales: str) -> None:
    pytest.importorskip("accelerate")
    folder = members.write(tmp_path, name, weights="fp8", scales=scales, **EVEN)
    settings = transformers.FineGrainedFP8Config(dequantize=True, weight_block_size=(128, 128))
    peer = theirs(transformers, folder, torch.bfloat16, quantization_config=settings).float()  # in BF16 it rounds once, as the twin does
    want = logits(peer)
    assert (logits(hf.load(folder)[0]) - want).abs().max() <= TOLERANCE and want.abs().max() > 1


@pytest.mark.parametrize(("name", "scales"), [("v3_671b", "f32"), ("v3_1", "e8m0"), ("r1", "bf16"), ("kimi_k2", "f32")])
def test_transformers_reads_what_a_released_folder_is_converted_to(
    transformers: ModuleType, tmp_path: Path, name: str, scales: str
) -> None:
    """FP8 with ragged blocks, which it cannot read itself, to BF16 and to FP32."""
    folder = members.write(tmp_path / "released", name, weights="fp8", scales=scales)
    ours = logits(hf.load(folder)[0])
    for to in ("bf16", "fp32"):
        with FolderSource(folder) as source:
            out = convert(source, None, tmp_path / to, to=to, shard_size=2_000_000)
        want = logits(theirs(transformers, out))
        assert (ours - want).abs().max() <= TOLERANCE and want.abs().max() > 1


ROPES = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {
            "type": st.just("yarn"), "factor": st.sampled_from([1.0, 2.5, 40.0]), "original_max_position_embeddings": st.sampled_from([4, 32, 4096]),
            "beta_fast": st.sampled_from([1, 32]), "beta_slow": st.sampled_from([1, 0.5]), "mscale": st.sampled_from([0.0, 0.707, 1.0]),
            "mscale_all_dim": st.sampled_from([0.0, 0.707, 1.0]),
        }
    ),
)  # fmt: skip


@settings(max_examples=20, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["v3_671b", "v2_236b"]), rope=ROPES, groups=st.sampled_from([(1, 1), (2, 1), (4, 2), (8, 8)]), rank=st.sampled_from([None, 5]),
    heads=st.integers(1, 3), shared=st.integers(1, 3), dense=st.integers(0, 3), chosen=st.integers(1, 4),
    theta=st.sampled_from([500.0, 50000.0]), scale=st.sampled_from([0.5, 16.0]), widths=st.sampled_from([(6, 4, 10), (2, 2, 3), (16, 8, 4)]),
)  # fmt: skip
def test_shapes_that_no_member_has(
    transformers: ModuleType, tmp_path_factory: pytest.TempPathFactory, name: str, rope: dict[str, Any] | None, groups: tuple[int, int],
    rank: int | None, heads: int, shared: int, dense: int, chosen: int, theta: float, scale: float, widths: tuple[int, int, int],
) -> None:  # fmt: skip
    folder = members.write(
        tmp_path_factory.mktemp("shape"), name, weights="bf16", hidden_size=24 * heads, rope_scaling=rope, n_group=groups[0], topk_group=groups[1],
        q_lora_rank=rank, num_attention_heads=heads, num_key_value_heads=heads, n_shared_experts=shared, first_k_dense_replace=dense,
        num_hidden_layers=3, num_experts_per_tok=chosen, rope_theta=theta, routed_scaling_factor=scale, qk_nope_head_dim=widths[0],
        qk_rope_head_dim=widths[1], v_head_dim=widths[2], num_nextn_predict_layers=0, kv_lora_rank=20, intermediate_size=40, moe_intermediate_size=24,
    )  # fmt: skip
    want = logits(theirs(transformers, folder))
    assert (logits(hf.load(folder)[0]) - want).abs().max() <= TOLERANCE * max(1.0, float(want.abs().max()) / 4)


# ---------------------------------------------------------------------- MTP

TINY_61 = {
    "num_hidden_layers": 61, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_group": 4,
    "topk_group": 2, "num_experts_per_tok": 2, "kv_lora_rank": 16, "q_lora_rank": 12, "num_attention_heads": 2, "num_key_value_heads": 2,
    "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes", "shards"),
    [("v3_671b", TINY_61, 3), ("v3_671b", TINY_61, 1), ("v3_1", {}, 3), ("r1", {}, 1), ("v3_0324", {"num_nextn_predict_layers": 2}, 3)],
    ids=["61 layers", "61 layers, one file", "v3_1", "r1", "two modules"],
)
def test_mtp_modules_agree_and_both_write_the_same_text(
    transformers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, Any], shards: int
) -> None:
    from transformers.cache_utils import MtpCache
    from transformers.modeling_layers import MtpModel

    ours, report = hf.load(members.write(tmp_path / "released", name, weights="bf16", shards=shards, **changes))
    assert report.notices == []
    folder = hf.export(ours, None, tmp_path / "ours", shard_size=5_000_000_000 if shards == 1 else 500_000)
    depth, modules = ours.config.num_hidden_layers, ours.config.num_nextn_predict_layers
    if depth != 61:  # the one number that transformers knows
        patterns = [re.escape(f"model.layers.{depth + index}.") + ".*" for index in range(modules)]
        monkeypatch.setattr(transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", patterns)
    peer = theirs(transformers, folder)
    mtp, cache = MtpModel.from_pretrained(peer), MtpCache(config=peer.config.get_mtp_config())
    with torch.no_grad():
        hidden = peer(IDS, output_hidden_states=True).hidden_states[-1]
        output = ours(IDS, mtp=True)
        for index, own in enumerate(output.mtp_hidden):
            places = torch.arange(1 + index, IDS.shape[1]).expand(len(IDS), -1)
            hidden = mtp.forward_layer(index, hidden[:, :-1], places, cache, input_ids=IDS[:, 1 + index :])
            want = mtp.shared_head(hidden)
            assert (ours.logits(own) - want).abs().max() <= TOLERANCE and want.abs().max() > 1
        prompt = IDS[:1, :20]
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
        text = peer.generate(prompt, use_mtp=True, **settings)[0, 20:].tolist()
        assert text == peer.generate(prompt, **settings)[0, 20:].tolist()
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    for drafts in range(modules + 1):
        assert generate(ours, prompt.tolist(), params, num_drafts=drafts).completions[0].token_ids == text
    assert len(output.mtp_hidden) == modules


def test_transformers_stores_the_same_values_that_were_released(transformers: ModuleType, tmp_path: Path) -> None:
    """Their save_pretrained keeps names and bits; it drops the MTP layer and writes router biases in FP32."""
    folder = members.write(tmp_path / "released", "v3_671b", weights="bf16")
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "theirs")
    released, saved = table(folder), table(tmp_path / "theirs")
    assert set(saved) == {name for name in released if not name.startswith("model.layers.5.")}
    assert all(torch.equal(value.float(), released[name].float()) for name, value in saved.items())
