"""The demonstration: the standard library and generated arithmetic, two CPU cores, minutes (`laptop`) or an hour (`laptop_1h`).

Shape, vocabulary, batch and schedule are chosen by experiment; the report's schedules are scaled to the number of tokens.
"""

from __future__ import annotations

from rorqual.config import ModelConfig
from rorqual.data.config import BuildConfig, DataConfig
from rorqual.train.hyperparams import (
    BatchSchedule,
    GammaSchedule,
    LambdaSchedule,
    LearningRateSchedule,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)

VOCAB_SIZE = 4096
PROMPTS = ("import os\n", "def fibonacci(n):\n", "class Stack:\n    def __init__(self):\n", "Question: What is 17 + 25?\n")


def laptop() -> RunConfig:
    """About fifteen minutes on two slow cores, corpus and report included; 18 TFLOP of training."""
    return _run(
        "laptop",
        total_tokens=1_540_000,
        model=ModelConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            num_hidden_layers=3,
            first_k_dense_replace=1,
            intermediate_size=352,
            moe_intermediate_size=64,
            n_routed_experts=16,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            num_attention_heads=4,
            q_lora_rank=64,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=2048,
            initializer_range=0.06,  # by experiment (docs/experiments.md); the report's 0.006 is for a width of 7168
        ),
        peak=4e-3,
        warmup_steps=100,
        batch=8,
        sequence_length=128,
        validate_every_steps=125,
    )


def laptop_1h() -> RunConfig:
    """About an hour on the same machine: a wider and deeper model, more tokens; 90 TFLOP of training."""
    return _run(
        "laptop_1h",
        total_tokens=4_300_000,
        model=laptop().model.with_(
            hidden_size=192,
            num_hidden_layers=4,
            num_attention_heads=6,
            q_lora_rank=96,
            intermediate_size=512,
            initializer_range=0.05,
        ),
        peak=3.5e-3,
        warmup_steps=100,
        batch=8,
        sequence_length=128,
        validate_every_steps=500,
    )


def _run(
    name: str,
    total_tokens: int,
    model: ModelConfig,
    peak: float,
    warmup_steps: int,
    batch: int,
    sequence_length: int,
    validate_every_steps: int,
) -> RunConfig:
    """What both runs share: data, report schedules scaled to `total_tokens`, everything measured and saved on the way."""
    return RunConfig(
        name=name,
        model=model,
        data=DataConfig(sources={"code": 0.92, "prose": 0.04, "arithmetic": 0.04}),
        build=BuildConfig(vocab_size=VOCAB_SIZE, tokenizer_bytes=12_000_000),
        train=TrainConfig(
            total_tokens=total_tokens,
            sequence_length=sequence_length,
            micro_batch_sequences=batch,
            learning_rate=LearningRateSchedule.scaled(total_tokens, peak=peak, warmup_steps=warmup_steps),
            batch=BatchSchedule.constant(batch),
            bias_update_speed=GammaSchedule.scaled(total_tokens),
            mtp_loss_weight=LambdaSchedule.scaled(total_tokens),
            optimizer=OptimizerConfig(beta2=0.99),  # by experiment: a step has a thousand tokens, the report's 0.95 is for 63 million
            ema_decay=0.99,
            checkpoint_every_steps=validate_every_steps,
            validate_every_steps=validate_every_steps,
            validation_source="code",
            validation_tokens=12_288,
            sample_every_steps=4 * validate_every_steps,
            sample_prompts=PROMPTS,
        ),
    )
