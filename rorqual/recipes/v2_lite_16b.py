"""DeepSeek-V2-Lite, 15.7B parameters, as V2 appendix B trains it (spec 1.3): softmax router, no MTP, step decay.

Trap: V2-Lite balances with a loss at expert level, alpha 0.001; this package has the sequence-wise loss of V3, which takes its
place here with the same weight, so this is V2-Lite's shape and schedule and not its exact loss.
"""

from __future__ import annotations

from rorqual.data.config import BuildConfig, DataConfig
from rorqual.presets import preset
from rorqual.train.hyperparams import (
    BatchSchedule,
    GammaSchedule,
    LambdaSchedule,
    LearningRateSchedule,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
)


def v2_lite_16b() -> RunConfig:
    """5.7T tokens at 4K, constant batch of 4608, 2K steps to 4.2e-4, times 0.316 at 80% and at 90% of the tokens."""
    total = 5_700_000_000_000
    return RunConfig(
        name="v2_lite_16b",
        model=preset("v2_lite_16b").with_(rope_scaling=None, max_position_embeddings=4096),
        data=DataConfig(fim_rate=0.0),
        build=BuildConfig(vocab_size=102400, split_rate=0.0, shard_bytes=1 << 30),
        train=TrainConfig(
            total_tokens=total,
            sequence_length=4096,
            micro_batch_sequences=4,
            learning_rate=LearningRateSchedule.two_drops(total, peak=4.2e-4, warmup_steps=2000, factor=0.316, first=0.8, second=0.9),
            batch=BatchSchedule.constant(4608),
            bias_update_speed=GammaSchedule(initial=0.0, until_tokens=0),  # no router bias in V2
            mtp_loss_weight=LambdaSchedule(initial=0.0, until_tokens=0, final=0.0),  # no MTP in V2
            optimizer=OptimizerConfig(moments="bf16"),  # ours: 12 bytes of state per parameter fit eight 80 GB devices
            aux_loss_alpha=1e-3,
            recompute=("norms", "mla_up", "swiglu"),
            compile=True,
            checkpoint_every_steps=500,
            validate_every_steps=500,
            validation_tokens=1 << 24,
        ),
    )
