"""What decides the adapters of a model. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from rorqual.errors import ConfigError

GROUPS = ("attention", "ffn", "experts")


@dataclass(frozen=True)
class LoraConfig:
    """W + alpha / rank * B A on the projections of `targets`: MLA's, the dense and shared FFNs', the routed experts'."""

    rank: int = 16
    alpha: float | None = None
    """None for twice the rank."""
    targets: tuple[str, ...] = ("attention", "ffn")
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"lora.rank ({self.rank!r}) must be a whole number of at least 1")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"lora.alpha ({self.alpha!r}) must be above 0, or none for twice the rank")
        unknown = [name for name in self.targets if name not in GROUPS]
        if unknown or not self.targets:
            raise ConfigError(f"lora.targets ({', '.join(unknown) or 'none'}) must be of {', '.join(GROUPS)}")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank
