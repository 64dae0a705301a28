"""How many devices hold what: pipeline stages, data-parallel replicas, expert-parallel groups, and what does not fit.

gpus = pp x dp; experts are spread over ep of the dp replicas, so ep divides dp and n_routed_experts. Report section 3.1: 2,048 GPUs are
pp 16 x dp 128 with ep 64. Layers are dealt out evenly, more to the first stages; the last stage also has head and MTP modules.
Optimiser state is shared out over the replicas (zero 1, as in the report); zero 3 shares out parameters and gradients too (FSDP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rorqual.config import ModelConfig
from rorqual.errors import ConfigError
from rorqual.planner.schedule import SCHEDULES, check_counts

_PART = re.compile(r"(pp|dp|ep|zero)(\d+)")


@dataclass(frozen=True)
class Layout:
    """Degrees of parallelism and the pipeline schedule."""

    pp: int = 1
    dp: int = 1
    ep: int = 1
    schedule: str = "dualpipe"
    zero: int = 1
    """1: optimiser state shared out over data parallelism; 3: parameters and gradients too."""

    @property
    def gpus(self) -> int:
        """Devices in all."""
        return self.pp * self.dp

    @property
    def replicas(self) -> int:
        """Copies of each routed expert."""
        return self.dp // self.ep

    def __str__(self) -> str:
        return f"pp{self.pp},dp{self.dp},ep{self.ep}" + (f",zero{self.zero}" if self.zero != 1 else "")

    @property
    def model_copies(self) -> int:
        """Copies of the parameters along the pipeline: DualPipe holds two (report table 2)."""
        return 2 if self.schedule == "dualpipe" and self.pp > 1 else 1

    @property
    def num_stages(self) -> int:
        """Pipeline stages of one model copy."""
        return 2 * self.pp if self.schedule == "dualpipev" and self.pp > 1 else self.pp


def parse(text: str, schedule: str = "dualpipe") -> Layout:
    """`pp16,dp128,ep64` as a Layout; a part that is left out is 1; `zero3` shares out the parameters too."""
    values: dict[str, int] = {}
    for part in text.replace(" ", "").split(","):
        match = _PART.fullmatch(part.lower())
        if match is None or match[1] in values:
            raise ConfigError(
                f"layout {text!r}: {part!r} is not pp, dp, ep or zero with a number, each once; write for example pp16,dp128,ep64"
            )
        values[match[1]] = int(match[2])
    return Layout(values.get("pp", 1), values.get("dp", 1), values.get("ep", 1), schedule, values.get("zero", 1))


def check(layout: Layout, config: ModelConfig, batch_sequences: int, gpus: int | None = None) -> None:
    """Refuses a layout that cannot run this model, with the numbers and the nearest that does."""
    pp, dp, ep = layout.pp, layout.dp, layout.ep
    if min(pp, dp, ep) < 1:
        raise ConfigError(f"layout {layout}: every degree must be at least 1")
    if layout.zero not in (1, 3):
        raise ConfigError(f"layout {layout}: zero must be 1 (optimiser state shared out) or 3 (parameters and gradients too)")
    if layout.schedule not in SCHEDULES:
        raise ConfigError(f"schedule {layout.schedule!r} is not known; there are {', '.join(SCHEDULES)}")
    if gpus is not None and layout.gpus != gpus:
        near = f"use dp{gpus // pp}" if gpus % pp == 0 else f"pp must divide {gpus}, e.g. pp{_divisor(gpus, pp)}"
        raise ConfigError(f"layout {layout} uses pp x dp = {pp} x {dp} = {layout.gpus} GPUs, not {gpus}; {near}")
    if layout.num_stages > config.num_hidden_layers:
        raise ConfigError(f"layout {layout} has {layout.num_stages} stages for {config.num_hidden_layers} layers; use pp of at most {max(1, config.num_hidden_layers * pp // layout.num_stages)}")  # fmt: skip
    if dp % ep:
        raise ConfigError(f"layout {layout}: ep ({ep}) must divide dp ({dp}); use ep{_divisor(dp, ep)}")
    experts = config.n_routed_experts
    if experts and experts % ep:
        raise ConfigError(f"layout {layout}: {experts} experts cannot be spread over ep {ep}; use ep{_divisor(experts, ep)}")
    if not experts and ep > 1:
        raise ConfigError(f"layout {layout}: the model has no routed experts, so ep must be 1")
    if batch_sequences < 1 or batch_sequences % dp:
        raise ConfigError(
            f"a batch of {batch_sequences} sequences cannot be split over dp {dp}; use {max(0, batch_sequences) // dp * dp + dp}"
        )
    if pp > 1:
        check_counts(layout.schedule, pp, batch_sequences // dp)


def _divisor(number: int, near: int) -> int:
    """The largest divisor of `number` that is at most `near`."""
    return next(value for value in range(min(number, near), 0, -1) if number % value == 0)


def deal(layers: int, num_stages: int) -> list[int]:
    """Layers of each stage: ceil(L / stages) until few are left, so that the last stage, which has head and MTP, is short.

    61 layers on 16 stages: fifteen stages of 4, the last of 1.
    """
    size = -(-layers // num_stages)
    counts = [size] * num_stages
    surplus = size * num_stages - layers
    for stage in range(num_stages - 1, -1, -1):
        take = min(surplus, counts[stage] - 1)
        counts[stage] -= take
        surplus -= take
    return counts


def stage_layers(config: ModelConfig, num_stages: int) -> list[range]:
    """The trunk's layers of each stage, by `deal`."""
    counts = deal(config.num_hidden_layers, num_stages)
    starts = [sum(counts[:stage]) for stage in range(num_stages)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]
