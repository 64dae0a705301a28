"""A run's configuration: to JSON and back, refusals, the learning rate's warm-up."""

import json

import pytest

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import GRPOConfig, presets
from rorqual.train.records import from_plain, to_plain


@pytest.mark.parametrize("name", presets())
def test_json_and_back(name):
    run = GRPORun(model="m", tasks=("chain_sum",), preset=name, grpo=presets()[name].config, lora=LoraConfig(rank=4))
    assert from_plain(GRPORun, json.loads(json.dumps(to_plain(run)))) == run


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"data": "a", "tasks": ("b",)}, "both given"), ({"weights": "fp8"}, "goes with lora"), ({"device": "tpu"}, "is not known"),
        ({"max_seconds": 0}, "max_seconds"), ({"task_size": 0}, "task_size"),
        ({"lora": LoraConfig(), "grpo": GRPOConfig(bias_update_speed=0.001)}, "must be 0 with lora"),
    ],
)  # fmt: skip
def test_refusals(fields, why):
    with pytest.raises(ConfigError, match=why):
        GRPORun(model="m", **fields)


def test_rate_grows_then_stays():
    run = GRPORun(model="m", grpo=GRPOConfig(learning_rate=1.0, warmup_steps=3))
    assert [run.rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
