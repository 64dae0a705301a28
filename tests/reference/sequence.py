"""One choice of one prompt on its way to an answer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rorqual.inference.sampler import SamplingParams


@dataclass(eq=False)
class Sequence:
    """Prompt and committed tokens. All but the last token have been through the trunk, whose cache holds `len(tokens) - 1` entries.

    `draft_start` and `draft_hidden` are the drafter's: trunk states of the positions from `draft_start` on that its modules have
    still to see. `finish_reason` is None while running, then "stop" or "length", as in OpenAI's API.
    """

    index: int
    choice: int
    tokens: list[int]
    num_prompt_tokens: int
    max_length: int
    params: SamplingParams
    stop_ids: frozenset[int]
    finish_reason: str | None = None
    draft_start: int = 0
    draft_hidden: Tensor | None = None

    @property
    def output(self) -> list[int]:
        """Committed tokens after the prompt, a stop token included."""
        return self.tokens[self.num_prompt_tokens :]

    def commit(self, token: int) -> bool:
        """Appends a token of the target; True while the sequence goes on."""
        self.tokens.append(token)
        if token in self.stop_ids:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_length:
            self.finish_reason = "length"
        return self.finish_reason is None
