"""The report's defaults, the cosine's two ends, refusals by name, JSON and back."""

from __future__ import annotations

import json

import pytest

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError
from rorqual.posttrain.sft_config import RenderConfig, SFTConfig
from rorqual.train.records import from_plain, to_plain


def test_the_defaults_are_the_reports():
    config = SFTConfig(model="m", data="d")
    assert (config.epochs, config.learning_rate, config.final_learning_rate, config.bias_update_speed) == (2, 5e-6, 1e-6, 0.0)


def test_the_cosine_by_hand():
    config = SFTConfig(model="m", data="d")
    assert [config.rate(step, 5) for step in range(5)] == pytest.approx([5e-6, 4.414214e-6, 3e-6, 1.585786e-6, 1e-6], rel=1e-6)
    assert config.rate(0, 1) == 5e-6
    warm = SFTConfig(model="m", data="d", warmup_steps=3, learning_rate=4.0, final_learning_rate=0.0)
    assert [warm.rate(step, 6) for step in range(6)] == pytest.approx([1.0, 2.0, 3.0, 4.0, 2.0, 0.0])


def test_json_and_back_is_the_same_run():
    config = SFTConfig(model="m", data="d", render=RenderConfig(style="r1"), lora=LoraConfig(rank=4, targets=("attention", "experts")))
    assert from_plain(SFTConfig, json.loads(json.dumps(to_plain(config)))) == config


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"epochs": 0}, "epochs"), ({"learning_rate": 0.0}, "learning_rate"), ({"weights": "bf16"}, "weights"), ({"device": "tpu"}, "device"),
     ({"batch_sequences": 1.5}, "batch_sequences"), ({"mtp_loss_weight": -1.0}, "mtp_loss_weight")],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(changes, told):
    with pytest.raises(ConfigError, match=told):
        SFTConfig(model="m", data="d", **changes)
    with pytest.raises(ConfigError, match="render.style"):
        RenderConfig(style="chatml")  # type: ignore[arg-type]
