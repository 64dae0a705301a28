"""A run of a model smaller than T0 that takes a second or two, and in-memory data that acts as a PackedDataset."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rorqual.data.config import BuildConfig, DataConfig
from rorqual.data.loader import Piece, SampleBatch, ValidationSet
from rorqual.train.hyperparams import BatchSchedule, GammaSchedule, LambdaSchedule, LearningRateSchedule, RunConfig, TrainConfig
from tests.tiny import t0

EOS = 1
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 1, "first_k_dense_replace": 0, "intermediate_size": 64, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1, "num_attention_heads": 2, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 8, "initializer_range": 0.02,
}  # fmt: skip


@dataclass
class TinyTokenizer:
    """Ids are byte values; id 1 ends a document."""

    fingerprint: str = "tiny"
    eos_id: int = EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")


class TinyData:
    """Sequence number g is a function of (seed, g): two alternating letters, which a model learns within a few steps."""

    def __init__(self, seq_len: int = 16, seed: int = 0, fingerprint: str = "tiny-data", vocab_size: int = 256) -> None:
        self.seq_len, self.seed, self.fingerprint, self.vocab_size = seq_len, seed, fingerprint, vocab_size
        self.tokenizer, self.sources = TinyTokenizer(), ("code",)

    def batch(self, first_sequence: int, count: int) -> SampleBatch:
        rows, documents = [], []
        for number in range(first_sequence, first_sequence + count):
            draw = np.random.default_rng((self.seed, number))
            row = np.resize(draw.integers(97, 123, size=2), self.seq_len + 1)
            row[draw.integers(self.seq_len)] = EOS
            rows.append(row)
            documents.append([Piece("code", number // 50, number % 50, 0, self.seq_len)])
        return SampleBatch(np.stack(rows).astype(np.int64), documents)

    def validation(self, source: str | None = None, max_tokens: int | None = None) -> ValidationSet:
        tokens = np.resize(np.array([97, 98, 99, 97, 98, EOS]), 100 if max_tokens is None else min(100, max_tokens)).astype(np.int64)
        text = bytes(int(t) for t in tokens if t != EOS)
        return ValidationSet("code", tokens, len(text), text)


def tiny_run(steps: int = 12, *, model: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    """`steps` optimiser steps of 4 sequences of 16 tokens, in micro-batches of 2."""
    total = steps * 64
    fields: dict[str, Any] = {
        "total_tokens": total, "sequence_length": 16, "micro_batch_sequences": 2,
        "learning_rate": LearningRateSchedule.scaled(total, peak=3e-3, warmup_steps=4), "batch": BatchSchedule.constant(4),
        "bias_update_speed": GammaSchedule(until_tokens=max(0, total - 128)), "mtp_loss_weight": LambdaSchedule.scaled(total), "ema_decay": 0.9,
        "checkpoint_every_steps": 5, "keep_checkpoints": 2, "validate_every_steps": 4, "validation_tokens": 40, "seed": 3,
    }  # fmt: skip
    return RunConfig(
        name="tiny",
        model=t0(**{**SHAPE, **(model or {})}),
        data=DataConfig(sources={"code": 1.0}),
        build=BuildConfig(vocab_size=256),
        train=TrainConfig(**{**fields, **changes}),
    )


def digest(named: dict[str, Tensor]) -> str:
    out = hashlib.sha256()
    for name, tensor in sorted(named.items()):
        out.update(name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return out.hexdigest()
