"""Every recipe validates, survives JSON, and needs no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rorqual.errors import ConfigError
from rorqual.recipes.catalog import RECIPES, recipe
from rorqual.train.hyperparams import RunConfig, diff, from_command_line


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_complete(name: str) -> None:
    run = recipe(name)
    assert run.name == name
    assert RunConfig.from_json(run.to_json()) == run
    assert run.train.num_steps() > run.train.learning_rate.warmup_steps


def test_recipe_takes_overrides_from_the_command_line() -> None:
    run = recipe("laptop")
    changed = from_command_line(run, ["--train.micro-batch-sequences", "2", "--model.n-routed-experts", "8"])
    assert set(diff(run, changed)) == {"train.micro_batch_sequences", "model.n_routed_experts"}


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"recipe \('desktop'\) is not known; there are laptop, laptop_1h, one_gpu"):
        recipe("desktop")


def test_no_torch_and_no_numpy() -> None:
    code = "import sys; from rorqual.recipes.catalog import RECIPES, recipe; [recipe(n) for n in RECIPES]; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
