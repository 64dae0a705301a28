"""transformers as judge, in both directions."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.checkpoint import hf
from tests.checkpoint.folders import IDS, build, logits
from tests.tiny import t0


@pytest.mark.peer
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"q_lora_rank": None}, {"tie_word_embeddings": True}, {"rope_scaling": None}, {"num_nextn_predict_layers": 2}, {"n_shared_experts": 2},
        {"first_k_dense_replace": 0}, {"first_k_dense_replace": 3}, {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446},
        {"norm_topk_prob": False}, {"v_head_dim": 20, "num_attention_heads": 3, "kv_lora_rank": 24, "vocab_size": 259},
        {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False, "num_nextn_predict_layers": 0,
         "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "q_lora_rank": None, "rope_scaling": None},
        {"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "scoring_func": "softmax", "norm_topk_prob": False,
         "num_nextn_predict_layers": 0, "routed_scaling_factor": 16.0, "rope_scaling": None},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("shard_size", [5_000_000_000, 200_000])
def test_transformers_reads_and_writes_the_same_model(tmp_path: Path, changes: dict[str, Any], shard_size: int) -> None:
    transformers = pytest.importorskip("transformers")
    config = t0(initializer_range=0.05, **changes)
    model = build(config)
    out = hf.export(model, None, tmp_path / "hf", shard_size=shard_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        with torch.no_grad():
            want = theirs(IDS).logits
        theirs.save_pretrained(tmp_path / "theirs")
    assert type(theirs).__name__ == ("DeepseekV2ForCausalLM" if config.model_type == "deepseek_v2" else "DeepseekV3ForCausalLM")
    assert (logits(model) - want).abs().max() <= 1e-4 and want.abs().max() > 0.05
    back, report = hf.load(tmp_path / "theirs")
    assert back.config.num_nextn_predict_layers == 0 and report.skipped == []
    assert torch.equal(logits(back), logits(model))
