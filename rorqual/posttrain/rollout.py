"""Groups of answers to questions: from the engine in this process, which shares the trainer's weights, or from a server by URL.

    rollout = LocalRollout(model, tokenizer, style="r1", thinking=True)
    groups = rollout.sample([Prompt(ids, reasoning)], config, keys=[17])        # one list of `config.group` answers per prompt

The prompt of a group is read once and its blocks are shared; all groups are decoded together (report section 5.2.2). An answer is a
function of (weights, prompt, key, number), whoever else is sampled. Which tokens count is decided by position, never by looking for pad
ids: everything up to and including the first end token (field case F35).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rorqual.errors import DataError
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.posttrain.policy import Kept, Row
from rorqual.posttrain.presets import GRPOConfig
from rorqual.tokenizer import chat
from rorqual.tokenizer.parse import Answer as Parsed
from rorqual.tokenizer.parse import StreamParser

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM
    from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """Token ids of a question, ready to be answered; `reasoning` where the prompt leaves `<think>` open."""

    ids: list[int]
    reasoning: bool = False


@dataclass(frozen=True, eq=False)
class Answer:
    """One sampled answer. `ids` ends with the end token unless it was `cut` at the length limit; `text` is all of it, `content` what
    stands after the reasoning. `logprobs` are the engine's, of the model's own distribution; see policy.Row for routes and kept."""

    prompt: list[int]
    ids: list[int]
    cut: bool
    text: str = ""
    reasoning: str = ""
    content: str = ""
    closed: bool = True
    """Whether the answer came out of its reasoning."""
    expects_reasoning: bool = False
    """Whether its prompt left `<think>` open."""
    logprobs: Float[Tensor, " n"] | None = None
    routes: Int[Tensor, "s l k"] | None = None
    kept: Kept | None = None

    @property
    def row(self) -> Row:
        """What the trainer scores."""
        return Row(self.prompt, self.ids, self.routes, self.kept)


class Rollout(Protocol):
    """Where answers come from."""

    def sample(self, prompts: Sequence[Prompt], config: GRPOConfig, keys: Sequence[int]) -> list[list[Answer]]:
        """config.group answers of each prompt; randomness is a function of the prompt's key and the answer's number."""
        ...


def up_to_end(ids: Sequence[int], end_ids: frozenset[int], limit: int) -> tuple[list[int], bool]:
    """(ids up to and including the first end token and at most `limit`, whether it was cut): by position, whatever the pad id (F35)."""
    for place, token in enumerate(ids[:limit]):
        if token in end_ids:
            return list(ids[: place + 1]), False
    return list(ids[:limit]), True


def render_prompt(messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, config: GRPOConfig) -> Prompt:
    """The chat prompt of a question in the configuration's style, with its system text where the messages bring none."""
    turns = list(messages)
    if config.system and not any(message.get("role") == "system" for message in turns):
        turns.insert(0, {"role": "system", "content": config.system})
    made = chat.render(turns, tokenizer, style=config.style, thinking=config.thinking)
    return Prompt(made.ids, made.reasoning)


def sampling(config: GRPOConfig, key: int, n: int, *, logprobs: bool = True) -> SamplingParams:
    """The engine's parameters for one question."""
    return SamplingParams(
        max_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, top_k=config.top_k, seed=key, n=n, stop=config.stop,
        logprobs=0 if logprobs else None,
    )  # fmt: skip


def parse(answer: Answer, tokenizer: Tokenizer | None, style: str, reasoning: bool, end_ids: frozenset[int]) -> Answer:
    """The same answer with its text, split into reasoning and content as the server would show it."""
    if tokenizer is None:
        return answer
    ids = answer.ids[:-1] if answer.ids and answer.ids[-1] in end_ids else answer.ids
    parser = StreamParser(style, tokenizer, reasoning=reasoning)
    whole = Parsed().add(parser.feed(ids))
    inside = parser.reasoning
    whole.add(parser.finish())
    return replace(
        answer, text=tokenizer.decode(ids), reasoning=whole.reasoning, content=whole.content, closed=not inside, expects_reasoning=reasoning
    )


class LocalRollout:
    """The engine over the model that is being trained: weights are shared, and no cached prefix outlives a call."""

    def __init__(
        self, model: CausalLM, tokenizer: Tokenizer | None, *, style: str = "v3", end_ids: Sequence[int] = (), max_num_seqs: int = 64,
        record_routes: bool = True, compiled: bool = True,
    ) -> None:  # fmt: skip
        self.tokenizer, self.style = tokenizer, style
        self.llm = LLM.from_model(
            model, tokenizer, speculative=0, max_num_seqs=max_num_seqs, end_ids=end_ids, compiled=compiled,
            enable_return_routed_experts=record_routes,
        )  # fmt: skip
        self.end_ids = self.llm.engine.end_ids

    def sample(self, prompts: Sequence[Prompt], config: GRPOConfig, keys: Sequence[int]) -> list[list[Answer]]:
        """Answers of every prompt, decoded together."""
        context = self.llm.engine.model.config.max_position_embeddings
        for prompt in prompts:
            if len(prompt.ids) + config.max_new_tokens > context:
                raise DataError(
                    f"a prompt of {len(prompt.ids)} tokens and max_new_tokens ({config.max_new_tokens}) exceed the model's context ({context}); "
                    "leave such questions out, or lower max_new_tokens"
                )
        params = [sampling(config, key, config.group) for key in keys]
        with torch.no_grad():
            requests = self.llm.generate([prompt.ids for prompt in prompts], params)
        return [
            [
                parse(
                    Answer(
                        request.prompt_token_ids, one.token_ids, one.finish_reason == "length",
                        logprobs=torch.tensor([found.logprob for found in one.logprobs or ()], dtype=torch.float32), routes=one.routed_experts,
                    ),
                    self.tokenizer, self.style, prompt.reasoning, self.end_ids,
                )
                for one in request.outputs
            ]
            for prompt, request in zip(prompts, requests, strict=True)
        ]  # fmt: skip
