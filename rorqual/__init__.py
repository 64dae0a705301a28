"""Rorqual: the DeepSeek-V3 system as one package. `from rorqual import LLM, SamplingParams` imports them when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rorqual.inference.llm import LLM as LLM
    from rorqual.inference.params import SamplingParams as SamplingParams


def __getattr__(name: str) -> object:
    if name == "LLM":
        from rorqual.inference.llm import LLM

        return LLM
    if name == "SamplingParams":
        from rorqual.inference.params import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'rorqual' has no attribute {name!r}")
