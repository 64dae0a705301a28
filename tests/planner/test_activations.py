"""What a block keeps, by hand."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError
from rorqual.planner.activations import POLICIES, MicroBatch, report_block, trainer_block, trainer_merge
from tests.planner.configurations import V3
from tests.tiny import t0


def test_the_reports_block_by_hand() -> None:
    """671B, a MoE block with everything recomputed: residuals 28,672, latents 4,224, E5M6 output 24,576, and so on: 155,104 bytes a token."""
    parts = report_block(V3, 10)
    assert parts == {"residual": 28_672, "latents": 4_224, "attention_output": 24_576, "attention_statistics": 512, "router": 1_120,
                     "dispatched": 8 * 7_392, "gate_up": 36_864}  # fmt: skip
    assert sum(parts.values()) == 155_104
    kept = report_block(V3, 10, ())
    assert kept["queries_keys_values"] == 2 * 128 * (192 + 192 + 128) and kept["swiglu"] == 9 * 2048
    assert "dispatched" not in report_block(V3, 0)
    assert sum(report_block(V3, 10, fp8=False).values()) > 1.5 * sum(parts.values())


def test_the_trainers_block_by_hand() -> None:
    """T0, 2 sequences of 64 tokens, FP32: widths times 128 tokens times 4 bytes."""
    parts = trainer_block(t0(), 1, MicroBatch(2, 64)).parts
    assert parts == {
        "residual": 128 * 2 * 64 * 4, "latents": 128 * (48 + 40) * 4, "attention_output": 128 * 64 * 4, "norm_statistics": 128 * 16,
        "normed": 128 * (2 * 64 + 48 + 32) * 4, "queries_keys_values": 128 * 4 * (24 + 24 + 16) * 4, "attention_statistics": 128 * 4 * 8,
        "router": 128 * (8 * 4 + 2 * 40), "dispatched": 128 * 2 * 64 * 4, "expert_gate_up": 128 * 2 * 64 * 4, "expert_outputs": 128 * 2 * 64 * 4,
        "gate_up": 128 * 64 * 4, "swiglu": 128 * 32 * 4,
    }  # fmt: skip
    assert trainer_merge(t0(), MicroBatch(2, 63)) == {"merged": 126 * 128 * 4, "merge_sources": 126 * 128 * 4, "last_norm": 126 * 64 * 4}


def test_policies_drop_what_they_name_and_nothing_else() -> None:
    every = trainer_block(t0(), 0, MicroBatch(2, 64)).parts
    for policy, part in (("norms", "normed"), ("mla_up", "queries_keys_values"), ("swiglu", "swiglu")):
        left = trainer_block(t0(), 0, MicroBatch(2, 64, recompute=(policy,))).parts
        assert set(every) - set(left) == {part} and left == {name: size for name, size in every.items() if name != part}
    with pytest.raises(ConfigError, match="recompute policy 'all' is not known; there are norms, mla_up, swiglu"):
        trainer_block(t0(), 0, MicroBatch(2, 64, recompute=("all",)))
    assert POLICIES == ("norms", "mla_up", "swiglu")


def test_attention_keeps_two_numbers_a_row_or_what_plain_pytorch_pads() -> None:
    """300 positions of 4 heads; in BF16 V of width 16 is padded to the 24 of Q, and so is the output, beside a statistic in FP32."""
    assert trainer_block(t0(), 0, MicroBatch(1, 300)).parts["attention_statistics"] == 300 * 4 * 8
    plain = trainer_block(t0(), 0, MicroBatch(1, 300, fp32=False)).parts
    assert "attention_statistics" not in plain and plain["attention_padding"] == 300 * 4 * ((24 + 24) * 2 + 4)
    assert MicroBatch(2, 64).shorter(1).tokens == 126
