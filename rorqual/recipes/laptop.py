"""The demonstration: the standard library and generated arithmetic, two CPU cores, minutes (`laptop`) or an hour (`laptop_1h`).

Shape, vocabulary, batch and schedule are chosen by experiment; the report's schedules are scaled to the number of tokens.
"""

from __future__ import annotations

from rorqual.config import ModelConfig
from rorqual.data.config import BuildConfig, DataConfig
from rorqual.train.hyperparams import BatchSchedule, GammaSchedule, LambdaSchedule, LearningRateSchedule, RunConfig, TrainConfig

VOCAB_SIZE = 4096
PROMPTS = ("import os\n", "def fibonacci(n):\n", "class Stack:\n    def __init__(self):\n", "Question: What is 17 + 25?\n")


def laptop() -> RunConfig:
    """About fifteen minutes on two slow cores, corpus and report included."""
    return _run(
        "laptop",
        total_tokens=1_500_000,
        model=ModelConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=192,
            num_hidden_layers=6,
            first_k_dense_replace=1,
            intermediate_size=512,
            moe_intermediate_size=64,
            n_routed_experts=16,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            num_attention_heads=6,
            q_lora_rank=96,
            kv_lora_rank=64,
            qk_nope_head_dim=32,
            qk_rope_head_dim=16,
            v_head_dim=32,
            max_position_embeddings=1024,
            initializer_range=0.02,  # at this width 0.006 starts too small
        ),
        peak=3e-3,
        warmup_steps=50,
        batch=16,
        sequence_length=256,
        validate_every_steps=50,
    )


def laptop_1h() -> RunConfig:
    """About an hour on the same machine: a wider model, more tokens."""
    return _run(
        "laptop_1h",
        total_tokens=7_000_000,
        model=laptop().model.with_(hidden_size=256, num_hidden_layers=8, num_attention_heads=8, intermediate_size=704),
        peak=2e-3,
        warmup_steps=100,
        batch=32,
        sequence_length=256,
        validate_every_steps=100,
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
        data=DataConfig(sources={"code": 0.9, "prose": 0.07, "arithmetic": 0.03}),
        build=BuildConfig(vocab_size=VOCAB_SIZE),
        train=TrainConfig(
            total_tokens=total_tokens,
            sequence_length=sequence_length,
            micro_batch_sequences=8,
            learning_rate=LearningRateSchedule.scaled(total_tokens, peak=peak, warmup_steps=warmup_steps),
            batch=BatchSchedule.constant(batch),
            bias_update_speed=GammaSchedule.scaled(total_tokens),
            mtp_loss_weight=LambdaSchedule.scaled(total_tokens),
            ema_decay=0.99,
            checkpoint_every_steps=50,
            validate_every_steps=validate_every_steps,
            validation_source="code",
            validation_tokens=16_384,
            sample_every_steps=0,
            sample_prompts=PROMPTS,
        ),
    )
