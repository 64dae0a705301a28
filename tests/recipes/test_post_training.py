"""What recipes do after pre-training: complete, within the stated budget, placed in the run folder, without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.data.synthetic import KINDS
from rorqual.errors import ConfigError
from rorqual.recipes.catalog import RECIPES
from rorqual.recipes.laptop import laptop
from rorqual.recipes.post_training import post_training, require


def test_the_laptop_goes_on_after_pretraining() -> None:
    course = require("laptop")
    assert sum(course.minutes.values()) == 30 and course.grpo.max_seconds == 60 * course.minutes["grpo"]
    assert set(course.kinds) <= set(KINDS) and course.heldout_problems == 500
    assert course.grpo.grpo.rewards == {"accuracy": 1.0}  # reinforcement by rules alone
    assert course.sft.render.max_tokens <= laptop().model.max_position_embeddings
    placed = course.placed(Path("runs/x"), seed=3)
    assert (placed.sft.model, placed.sft.data) == ("runs/x", "runs/x/problems/sft.jsonl")
    assert (placed.grpo.model, placed.grpo.data) == ("runs/x/sft", "runs/x/problems/rl.jsonl")
    assert placed.sft.seed == placed.grpo.grpo.seed == 3 and course.placed(Path("runs/x")).sft.seed == 0


def test_other_recipes_end_with_pretraining() -> None:
    assert [name for name in RECIPES if post_training(name)] == ["laptop"]
    with pytest.raises(ConfigError, match="ends with pre-training"):
        require("laptop_1h")


def test_no_torch() -> None:
    code = "import sys; from rorqual.recipes.post_training import require; require('laptop'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
