"""The report's schedules as pure functions of (step, tokens), so a resumed run needs no scheduler state. No torch.

Report section 4.2:

    learning rate   linear 0 -> peak over the warm-up steps, constant, cosine, first constant tail, last constant tail
    batch           start -> end over the first tokens, in whole sequences
    gamma           bias_update_speed: the router bias moves until near the end, then stands still
    lambda          mtp_loss_weight: 0.3, later 0.1

`step` is the 0-based number of the optimiser step about to be taken, `tokens` the number of tokens seen before it.
Trap: only the warm-up counts steps; everything else counts tokens, because the batch grows (spec 5.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rorqual.errors import ConfigError
from rorqual.train.records import number, ordered, whole

# Token boundaries of report section 4.2.
REPORT_TOKENS = 14_800_000_000_000
REPORT_CONSTANT_UNTIL = 10_000_000_000_000
REPORT_COSINE_UNTIL = 14_300_000_000_000
REPORT_TAIL_UNTIL = 14_633_000_000_000
REPORT_BATCH_RAMP = 469_000_000_000


def _share(total_tokens: int, of_report: int) -> int:
    """The report's boundary `of_report` moved to a run of `total_tokens`, rounded down to a whole token."""
    return total_tokens * of_report // REPORT_TOKENS


# ---------------------------------------------------------------------- schedules


@dataclass(frozen=True)
class LearningRateSchedule:
    """Warm-up, constant, cosine, two constant tails (report section 4.2). Defaults are the report's."""

    peak: float = 2.2e-4
    warmup_steps: int = 2000
    """Optimiser steps of linear growth from 0; 0 for none."""
    constant_until_tokens: int = REPORT_CONSTANT_UNTIL
    cosine_until_tokens: int = REPORT_COSINE_UNTIL
    cosine_to: float = 2.2e-5
    """End of the cosine and height of the first tail."""
    tail_until_tokens: int = REPORT_TAIL_UNTIL
    final: float = 7.3e-6
    """Height of the last tail."""

    def __post_init__(self) -> None:
        number("learning_rate.peak", self.peak, 0, above=True)
        number("learning_rate.cosine_to", self.cosine_to, 0)
        number("learning_rate.final", self.final, 0)
        whole("learning_rate.warmup_steps", self.warmup_steps, 0)
        ordered("learning_rate", constant_until_tokens=self.constant_until_tokens, cosine_until_tokens=self.cosine_until_tokens,
                 tail_until_tokens=self.tail_until_tokens)  # fmt: skip

    @classmethod
    def scaled(
        cls, total_tokens: int, peak: float = 2.2e-4, warmup_steps: int = 2000, cosine_to: float | None = None, final: float | None = None
    ) -> LearningRateSchedule:
        """The report's shape on a run of `total_tokens`; the tails keep the report's ratios to the peak (1/10, 7.3/220) unless given."""
        return cls(
            peak=peak, warmup_steps=warmup_steps,
            constant_until_tokens=_share(total_tokens, REPORT_CONSTANT_UNTIL),
            cosine_until_tokens=_share(total_tokens, REPORT_COSINE_UNTIL),
            cosine_to=peak * 2.2e-5 / 2.2e-4 if cosine_to is None else cosine_to,
            tail_until_tokens=_share(total_tokens, REPORT_TAIL_UNTIL),
            final=peak * 7.3e-6 / 2.2e-4 if final is None else final,
        )  # fmt: skip

    @classmethod
    def two_drops(
        cls, total_tokens: int, peak: float, warmup_steps: int, factor: float, first: float, second: float
    ) -> LearningRateSchedule:
        """A step decay: times `factor` at the share `first` of the tokens and again at `second`; the cosine has no length.

        DeepSeek-V2's form (V2 section 3.1.2, appendix B): factor 0.316 at 0.8 and 0.9 for V2-Lite.
        """
        drop = round(total_tokens * first)
        return cls(peak=peak, warmup_steps=warmup_steps, constant_until_tokens=drop, cosine_until_tokens=drop, cosine_to=peak * factor,
                   tail_until_tokens=round(total_tokens * second), final=peak * factor * factor)  # fmt: skip

    @classmethod
    def constant(cls, value: float, total_tokens: int, warmup_steps: int = 0) -> LearningRateSchedule:
        """One height for the whole run, as in the context extension (report section 4.3)."""
        return cls(peak=value, warmup_steps=warmup_steps, constant_until_tokens=total_tokens, cosine_until_tokens=total_tokens, cosine_to=value,
                   tail_until_tokens=total_tokens, final=value)  # fmt: skip

    def value(self, step: int, tokens: int) -> float:
        """Learning rate of step `step` after `tokens` tokens. Where a short run decays during warm-up, both apply."""
        if tokens < self.constant_until_tokens:
            height = self.peak
        elif tokens < self.cosine_until_tokens:
            done = (tokens - self.constant_until_tokens) / (self.cosine_until_tokens - self.constant_until_tokens)
            height = self.cosine_to + 0.5 * (self.peak - self.cosine_to) * (1.0 + math.cos(math.pi * done))
        else:
            height = self.cosine_to if tokens < self.tail_until_tokens else self.final
        return height * step / self.warmup_steps if step < self.warmup_steps else height


@dataclass(frozen=True)
class BatchSchedule:
    """Sequences per optimiser step. The report gives both ends and the token count; growth linear in tokens is our choice."""

    start: int = 3072
    end: int = 15360
    ramp_tokens: int = REPORT_BATCH_RAMP
    """Tokens after which the batch has its full size; 0 for a constant batch of `end`."""
    multiple_of: int = 1
    """Values are rounded down to a multiple of this, e.g. micro-batch x ranks."""

    def __post_init__(self) -> None:
        whole("batch.multiple_of", self.multiple_of, 1)
        whole("batch.start", self.start, 1)
        whole("batch.end", self.end, 1)
        whole("batch.ramp_tokens", self.ramp_tokens, 0)
        if self.end < self.start:
            raise ConfigError(f"batch.end ({self.end}) must be at least batch.start ({self.start}): the batch grows during a run")
        for name, size in (("start", self.start), ("end", self.end)):
            if size % self.multiple_of:
                low = size - size % self.multiple_of
                near = " or ".join(str(n) for n in (low, low + self.multiple_of) if n)
                raise ConfigError(f"batch.{name} ({size}) must be a multiple of batch.multiple_of ({self.multiple_of}); use {near}")

    @classmethod
    def scaled(cls, total_tokens: int, start: int, end: int, multiple_of: int = 1) -> BatchSchedule:
        """The report's ramp, 469B of 14.8T tokens, on a run of `total_tokens`."""
        return cls(start=start, end=end, ramp_tokens=_share(total_tokens, REPORT_BATCH_RAMP), multiple_of=multiple_of)

    @classmethod
    def constant(cls, size: int) -> BatchSchedule:
        """The same number of sequences in every step."""
        return cls(start=size, end=size, ramp_tokens=0)

    def value(self, tokens: int) -> int:
        """Sequences of the step that begins after `tokens` tokens; exact integer arithmetic."""
        if tokens >= self.ramp_tokens:
            return self.end
        size = self.start + (self.end - self.start) * tokens // self.ramp_tokens
        return size - size % self.multiple_of


@dataclass(frozen=True)
class GammaSchedule:
    """Speed of the router bias, gamma: 1e-3 until 14.3T of 14.8T tokens, then 0 (report section 4.2)."""

    initial: float = 1e-3
    until_tokens: int = REPORT_COSINE_UNTIL
    final: float = 0.0

    def __post_init__(self) -> None:
        number("bias_update_speed.initial", self.initial, 0)
        number("bias_update_speed.final", self.final, 0)
        whole("bias_update_speed.until_tokens", self.until_tokens, 0)

    @classmethod
    def scaled(cls, total_tokens: int, initial: float = 1e-3, final: float = 0.0) -> GammaSchedule:
        """The report's boundary on a run of `total_tokens`."""
        return cls(initial=initial, until_tokens=_share(total_tokens, REPORT_COSINE_UNTIL), final=final)

    def value(self, tokens: int) -> float:
        """Gamma of the step that begins after `tokens` tokens."""
        return self.initial if tokens < self.until_tokens else self.final


@dataclass(frozen=True)
class LambdaSchedule:
    """Weight of the MTP loss, lambda: 0.3 until 10T of 14.8T tokens, then 0.1 (report section 4.2)."""

    initial: float = 0.3
    until_tokens: int = REPORT_CONSTANT_UNTIL
    final: float = 0.1

    def __post_init__(self) -> None:
        number("mtp_loss_weight.initial", self.initial, 0)
        number("mtp_loss_weight.final", self.final, 0)
        whole("mtp_loss_weight.until_tokens", self.until_tokens, 0)

    @classmethod
    def scaled(cls, total_tokens: int, initial: float = 0.3, final: float = 0.1) -> LambdaSchedule:
        """The report's boundary on a run of `total_tokens`."""
        return cls(initial=initial, until_tokens=_share(total_tokens, REPORT_CONSTANT_UNTIL), final=final)

    def value(self, tokens: int) -> float:
        """Lambda of the step that begins after `tokens` tokens."""
        return self.initial if tokens < self.until_tokens else self.final
