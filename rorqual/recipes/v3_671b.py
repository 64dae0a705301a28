"""DeepSeek-V3 itself: the report's model, data order and hyper-parameters (sections 4.2 and 4.3), for planning and for clusters.

Pre-training runs at 4K without RoPE scaling; two extension phases of 1000 steps follow, at 32K and 128K, with YaRN. The data
must be yours: the report's mixture is not published, and `inputs` is empty here.
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

_BUILD = BuildConfig(vocab_size=129280, shard_bytes=1 << 30)


def v3_671b() -> RunConfig:
    """Pre-training on 14.8T tokens: every schedule at its default, which is the report's."""
    return RunConfig(
        name="v3_671b",
        model=preset("v3_671b").with_(rope_scaling=None, max_position_embeddings=4096),
        data=DataConfig(),
        build=_BUILD,
        train=TrainConfig(
            total_tokens=14_800_000_000_000,
            sequence_length=4096,
            micro_batch_sequences=1,
            learning_rate=LearningRateSchedule(),
            batch=BatchSchedule(multiple_of=128),  # ours: whole sequences on each of the 128 data-parallel ranks
            bias_update_speed=GammaSchedule(),
            mtp_loss_weight=LambdaSchedule(),
            optimizer=OptimizerConfig(moments="bf16"),
            ema_decay=0.999,  # ours: the report keeps an average but does not publish its decay
            recompute=("norms", "mla_up", "swiglu"),
            compile=True,
            checkpoint_every_steps=500,
            validate_every_steps=500,
            validation_tokens=1 << 26,
        ),
    )


def v3_671b_32k() -> RunConfig:
    """First extension phase: 32K tokens, 1920 sequences, 1000 steps at the last learning rate of pre-training."""
    return _extension("v3_671b_32k", sequence_length=32768, sequences=1920)


def v3_671b_128k() -> RunConfig:
    """Second extension phase: 128K tokens, 480 sequences, 1000 steps; as many tokens per step as the first."""
    return _extension("v3_671b_128k", sequence_length=131072, sequences=480)


def _extension(name: str, sequence_length: int, sequences: int) -> RunConfig:
    """YaRN from the preset (factor 40). Gamma and lambda keep their last values of pre-training, which the report does not say."""
    pretraining = v3_671b()
    return RunConfig(
        name=name,
        model=preset("v3_671b"),
        data=pretraining.data,
        build=pretraining.build,
        train=TrainConfig(
            total_tokens=1000 * sequences * sequence_length,
            sequence_length=sequence_length,
            micro_batch_sequences=1,
            learning_rate=LearningRateSchedule.constant(7.3e-6, total_tokens=1000 * sequences * sequence_length),
            batch=BatchSchedule.constant(sequences),
            bias_update_speed=GammaSchedule(initial=0.0, until_tokens=0),
            mtp_loss_weight=LambdaSchedule(initial=0.1, until_tokens=0, final=0.1),
            optimizer=pretraining.train.optimizer,
            ema_decay=pretraining.train.ema_decay,
            recompute=pretraining.train.recompute,
            compile=True,
            checkpoint_every_steps=100,
            validate_every_steps=100,
            validation_tokens=1 << 26,
        ),
    )
