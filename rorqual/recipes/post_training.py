"""What a recipe does after pre-training: fine-tuning on worked arithmetic, reinforcement learning on problems it has not seen. No torch.

Report section 5 at the scale of the laptop: the questions of the three sets (learned by example, learned by reward, only measured)
never meet. Learning rates, counts and steps are chosen by experiment (docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from rorqual.errors import ConfigError
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.presets import GRPOConfig, Objective
from rorqual.posttrain.sft_config import RenderConfig, SFTConfig
from rorqual.train.hyperparams import OptimizerConfig

if TYPE_CHECKING:
    from rorqual.posttrain.arithmetic import Working


@dataclass(frozen=True)
class PostTraining:
    """`sft` and `grpo` are complete but for the folders, which `placed` fills in."""

    sft: SFTConfig
    grpo: GRPORun
    kinds: tuple[str, ...]
    """Kinds of problems (data.synthetic)."""
    max_digits: int
    working: Working
    """How sums are worked in the examples (posttrain.arithmetic)."""
    short_percent: int
    """Examples of 100 that give the answer at once: what reinforcement learning has to unlearn."""
    sft_samples: int
    rl_problems: int
    heldout_problems: int
    minutes: MappingProxyType[str, float] = field(
        default_factory=lambda: MappingProxyType({"pretrain": 15.0, "sft": 3.0, "grpo": 8.0, "evaluation and report": 4.0})
    )
    """The budget on two slow cores."""

    def placed(self, out: Path, seed: int | None = None) -> PostTraining:
        """The same for a run folder: its export, problems/ inside it, sft/ and grpo/. `seed` replaces that of both stages."""
        problems = out / "problems"
        sft = replace(self.sft, model=str(out), data=str(problems / "sft.jsonl"))
        grpo = replace(self.grpo, model=str(out / "sft"), data=str(problems / "rl.jsonl"))
        if seed is not None:
            sft, grpo = replace(sft, seed=seed), replace(grpo, grpo=replace(grpo.grpo, seed=seed))
        return replace(self, sft=sft, grpo=grpo)


def laptop() -> PostTraining:
    """Sums of numbers up to 99: examples first, a quarter of them without working, then rewards for right answers alone, no reward model.

    The fine-tuned model works out some answers and guesses others. Nothing but the reward tells it that working them out is what pays.
    A step of fine-tuning is one row, of eight to ten examples; a row of 416 tokens fills well with samples of 51 and 29, or a little longer.
    """
    return PostTraining(
        sft=SFTConfig(
            model="", data="", render=RenderConfig(style="r1", max_tokens=416), epochs=2, learning_rate=3e-3, final_learning_rate=2e-4,
            warmup_steps=20, batch_sequences=1, mtp_loss_weight=0.3, checkpoint_every_steps=200,
        ),
        grpo=GRPORun(
            model="", max_seconds=480.0,
            grpo=GRPOConfig(
                objective=Objective(), steps=68, prompts=16, group=16, max_new_tokens=64, learning_rate=2e-4, warmup_steps=10,
                groups_without_signal="drop", style="r1", thinking=True, rewards={"accuracy": 1.0},
                optimizer=OptimizerConfig(beta2=0.99, weight_decay=0.0), checkpoint_every_steps=20,
            ),
        ),
        kinds=("addition",), max_digits=2, working="places", short_percent=25, sft_samples=4000, rl_problems=1500, heldout_problems=500,
    )  # fmt: skip


_COURSES = MappingProxyType({"laptop": laptop})


def post_training(recipe: str) -> PostTraining | None:
    """What the recipe of that name does after pre-training, None for nothing."""
    made = _COURSES.get(recipe)
    return None if made is None else made()


def require(recipe: str) -> PostTraining:
    """The same; ConfigError for a recipe that ends with pre-training."""
    found = post_training(recipe)
    if found is None:
        raise ConfigError(f"recipe ({recipe!r}) ends with pre-training; one of {', '.join(_COURSES)} goes on")
    return found
