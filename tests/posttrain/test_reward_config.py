"""Settings of a reward model's training."""

from __future__ import annotations

import json

import pytest

from rorqual.errors import ConfigError
from rorqual.posttrain.reward_config import RewardConfig
from rorqual.train.records import from_plain, to_plain


def test_the_rate_falls_to_a_tenth():
    config = RewardConfig("m", "d", learning_rate=1.0)
    assert [round(config.rate(step, 3), 6) for step in range(3)] == [1.0, 0.55, 0.1]
    assert config.rate(0, 1) == 1.0


def test_defaults_are_the_published_ones():
    config = RewardConfig("m", "d")
    assert (config.epochs, config.batch, config.learning_rate, config.max_tokens) == (1, 256, 6e-6, 8192)
    assert from_plain(RewardConfig, json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch": 0}, "batch"), ({"validation_share": 1.0}, "below 1"), ({"device": "tpu"}, "device"), ({"reasoning": "maybe"}, "reasoning")],
)
def test_bad_values_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        RewardConfig("m", "d", **change)
