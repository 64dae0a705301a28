"""Named presets carry the published constants, and their printed formulas say what is ours."""

import subprocess
import sys
from dataclasses import replace

import pytest

from rorqual.errors import ConfigError
from rorqual.posttrain.presets import GRPOConfig, Objective, formula, preset, presets


def test_the_published_constants():
    """Specification section 8.3 and the papers of the later presets."""
    math, zero, r1 = (preset(name).config for name in ("grpo-deepseekmath", "r1-zero", "r1"))
    assert (math.objective.kl_beta, math.group, math.prompts * math.group, math.max_new_tokens, math.learning_rate) == (
        0.04,
        64,
        1024,
        1024,
        1e-6,
    )
    assert (zero.objective.kl_beta, zero.group, zero.prompts // zero.minibatches, zero.minibatches) == (0.001, 16, 32, 16)
    assert (zero.prompts * zero.group, zero.reference_refresh, zero.learning_rate, zero.temperature) == (8192, 400, 3e-6, 1.0)
    assert zero.rewards == {"accuracy": 1.0, "format": 1.0} and zero.max_new_tokens == 32_768
    assert (r1.objective.clip_low, r1.objective.clip_high) == (10.0, 10.0)
    assert preset("grpo-v3").config.objective.ratio == "sequence"
    assert (preset("dapo").config.objective.clip_high, preset("dapo").config.objective.aggregation) == (0.28, "token-mean")
    assert preset("dr-grpo").config.objective.scale == "none" and preset("gspo").config.objective.clip_high == 4e-4


def test_formulas_print_their_numbers_and_mark_what_is_ours():
    texts = {name: formula(one.config, one.ours) for name, one in presets().items()}
    assert texts["grpo-deepseekmath"].startswith(
        "J = mean over answers of 1/|o| sum over t of { min(rho_t A, clip(rho_t, 1 - 0.2*, 1 + 0.2*) A) - 0.04 k3 }"
    )
    assert texts["grpo-v3"].startswith("J = mean over answers of { min(rho A, clip(rho, 1 - 0.2*, 1 + 0.2*) A) - 0.04* k3 }")
    assert "clip(rho_t, 1 - 10, 1 + 10)" in texts["r1"] and "pi_ref = pi every 400 steps" in texts["r1"]
    assert "mean over all tokens" in texts["dapo"] and "k3" not in texts["dapo"]
    assert "1/3000 sum over t" in texts["dr-grpo"] and "A = r - mean of the group" in texts["dr-grpo"]
    assert "geometric mean" in texts["gspo"]
    assert all("* ours" in text for text in texts.values())


def test_what_is_marked_exists():
    for one in presets().values():
        for name in one.ours:
            record = one.config.objective if name.startswith("objective.") else one.config
            assert hasattr(record, name.removeprefix("objective.")), (one.name, name)


def test_json_round_trip_and_named_changes():
    config = preset("r1").config
    assert GRPOConfig.from_json(config.to_json()) == config
    changed = replace(config, group=8, objective=replace(config.objective, kl_beta=0.0))
    assert set(config.changes(changed)) == {"group", "objective.kl_beta"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"ratio": "word"}, "'word'"), ({"clip_low": -1.0}, "-1.0"), ({"clip_dual": 0.5}, "0.5"), ({"kl_beta": float("nan")}, "nan"),
     ({"ratio": "sequence", "aggregation": "token-mean"}, "ratio 'token'")],
)  # fmt: skip
def test_bad_objectives_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Objective(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"group": 1}, "group"), ({"prompts": 6, "minibatches": 4}, "multiple of minibatches"), ({"temperature": 0.0}, "temperature"), ({"rewards": {}}, "empty"),
     ({"routing_replay": "r4"}, "r4"), ({"top_p": 0.0}, "top_p"), ({"rewards": {"accuracy": float("inf")}}, "rewards.accuracy"),
     ({"rewards": {"length": 1.0}, "max_penalty_length": 24, "max_new_tokens": 24}, "would punish every answer")],
)  # fmt: skip
def test_bad_settings_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        GRPOConfig(**changes)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match="grpo-deepseekmath, grpo-v3, r1-zero, r1, dapo, dr-grpo, gspo"):
        preset("ppo")


def test_presets_need_no_torch():
    code = "import sys, rorqual.posttrain.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
