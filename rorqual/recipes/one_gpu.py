"""A MoE of about 0.7B parameters (0.2B active) with every part of V3, for one GPU of 80 GB; shape and schedule are ours.

The head widths keep the report's ratios (2:1:2, latent 4 heads wide); widths are multiples of 64 for the GEMMs.
"""

from __future__ import annotations

from rorqual.config import ModelConfig
from rorqual.data.config import BuildConfig, DataConfig
from rorqual.train.hyperparams import BatchSchedule, GammaSchedule, LambdaSchedule, LearningRateSchedule, RunConfig, TrainConfig


def one_gpu() -> RunConfig:
    """10B tokens of the user's own data at 2K, with the report's schedules scaled to them."""
    total = 10_000_000_000
    return RunConfig(
        name="one_gpu",
        model=ModelConfig(
            vocab_size=32768,
            hidden_size=1024,
            num_hidden_layers=16,
            first_k_dense_replace=1,
            intermediate_size=2816,
            moe_intermediate_size=384,
            n_routed_experts=32,
            n_shared_experts=1,
            num_experts_per_tok=4,
            n_group=4,
            topk_group=2,
            num_attention_heads=16,
            q_lora_rank=384,
            kv_lora_rank=256,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
            max_position_embeddings=2048,
        ),
        data=DataConfig(),
        build=BuildConfig(vocab_size=32768),
        train=TrainConfig(
            total_tokens=total,
            sequence_length=2048,
            micro_batch_sequences=16,
            learning_rate=LearningRateSchedule.scaled(total, peak=6e-4, warmup_steps=1000),
            batch=BatchSchedule.scaled(total, start=64, end=256, multiple_of=16),
            bias_update_speed=GammaSchedule.scaled(total),
            mtp_loss_weight=LambdaSchedule.scaled(total),
            ema_decay=0.999,
            recompute=("norms", "swiglu"),
            compile=True,
            checkpoint_every_steps=500,
            validate_every_steps=500,
            validation_tokens=1 << 21,
        ),
    )
