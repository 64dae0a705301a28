r"""A reward model in use: a model with one more output, the score of an answer; and what can stand in its place as the reward `model`.

    reward = RewardModel.load("runs/reward")
    reward.scores([Item(question, answer, reference="42")])             # real numbers, the higher the better
    component, facts = open_reward("runs/reward")                        # for rewards.Rewards(config, {"model": component})

    r = w \cdot h_T + b,    value = 1 / (1 + exp(mean - r))

h_T is the final hidden state at the last token, behind the judge's reasoning where the model was trained with reasoning (report section
5.2.1: the chain of thought leads to the reward, against reward hacking). `value` is what Bradley and Terry give for the chance that this
answer is preferred to an average one: it lies in (0, 1), so that no single component can drown the others.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn

from rorqual.adapters import peft
from rorqual.errors import CheckpointError, DataError
from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.model.transformer import CausalLM
from rorqual.posttrain.base import Base, open_base
from rorqual.posttrain.problems import Problem
from rorqual.posttrain.reward_data import Encoded, Item, encode, item_of
from rorqual.posttrain.rewards import Component, Outcome, unknown
from rorqual.posttrain.rollout import Answer
from rorqual.tokenizer import bpe
from rorqual.train.records import from_plain

FORMAT = "rorqual-reward-1"
FACTS_NAME, HEAD_NAME = "reward.json", "reward_head.safetensors"


@dataclass(frozen=True)
class RewardFacts:
    """What a folder says about its model. `mean` and `std` are of the scores of the answers it was trained on."""

    style: str
    reasoning: bool
    max_tokens: int
    max_reasoning_tokens: int
    mean: float = 0.0
    std: float = 1.0
    format: str = FORMAT


class RewardHead(nn.Module):
    """w . h + b in FP32. Starts at zero, so that the first loss is log 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """Scores of hidden states."""
        return (hidden.float() @ self.weight.float().t() + self.bias.float()).squeeze(1)


@dataclass(frozen=True)
class Packed:
    """Items end to end in one row without padding, each isolated from the others (field case F29). `ends`: the place of each one's last token."""

    ids: Int[Tensor, "1 n"]
    positions: Int[Tensor, "1 n"]
    segment_ids: Int[Tensor, "1 n"]
    starts: list[int]
    ends: list[int]

    def hidden(self, model: CausalLM) -> Float[Tensor, "n m"]:
        """The model's final states of all tokens; no item sees another one."""
        device = model.head_weight.device
        ids, positions, segments = (one.to(device) for one in (self.ids, self.positions, self.segment_ids))
        hidden: Tensor = model(ids, positions=positions, segment_ids=segments).hidden[0]
        return hidden


def packed(items: Sequence[Encoded]) -> Packed:
    """The row of some items."""
    lengths = [len(item.ids) for item in items]
    ends = list(accumulate(lengths))
    ids = torch.tensor([token for item in items for token in item.ids])
    positions = torch.cat([torch.arange(length) for length in lengths])
    segments = torch.repeat_interleave(torch.arange(len(items)), torch.tensor(lengths))
    starts = [end - length for end, length in zip(ends, lengths, strict=True)]
    return Packed(ids.unsqueeze(0), positions.unsqueeze(0), segments.unsqueeze(0), starts, [end - 1 for end in ends])


class RewardModel:
    """Model, head and tokenizer; `facts` say how an answer is shown to it."""

    def __init__(self, model: CausalLM, head: RewardHead, tokenizer: bpe.Tokenizer, facts: RewardFacts) -> None:
        self.model, self.head, self.tokenizer, self.facts = model, head, tokenizer, facts
        self._llm: LLM | None = None
        self._known: dict[Item, float] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path, weights: str = "fp32") -> RewardModel:
        """Reads a folder of `rorqual reward-model`, its adapter merged into the base where it has one; CheckpointError for any other."""
        place = reward_folder(Path(folder))
        try:
            facts = from_plain(RewardFacts, json.loads((place / FACTS_NAME).read_text(encoding="utf-8")))
            stored = load_file(place / HEAD_NAME)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{place} is no whole reward model: {error}") from error
        if facts.format != FORMAT:
            raise CheckpointError(f"{place / FACTS_NAME} has format {facts.format!r}, {FORMAT!r} is required; train it anew")
        base = reward_base(place)
        model = base.load(weights)
        head = RewardHead(model.config.hidden_size)
        if {name: t.shape for name, t in stored.items()} != {name: t.shape for name, t in head.state_dict().items()}:
            raise CheckpointError(f"{place / HEAD_NAME} does not fit a model of width {model.config.hidden_size}")
        head.load_state_dict(stored)
        return cls(model, head, base.tokenizer(), facts)

    @torch.no_grad()
    def scores(self, items: Sequence[Item], batch: int = 16) -> list[float]:
        """Raw scores. With a model that reasons, items without reasoning get the model's own first; NaN where that found no end.

        DataError for an item that is too long. Threads take turns.
        """
        with self._lock:
            return self._scores(items, batch)

    def _scores(self, items: Sequence[Item], batch: int) -> list[float]:
        given, items = items, self._reasoned(items) if self.facts.reasoning else list(items)
        found = [math.nan] * len(items)
        ready = []
        for at, item in enumerate(items):
            if self.facts.reasoning and not item.reasoning:
                continue
            made = encode(item, self.tokenizer, self.facts.style, self.facts.reasoning)
            if len(made.ids) <= self.facts.max_tokens:
                ready.append((at, made))
            elif item is given[at]:  # its own reasoning, encoded anew, may be a token too long: no score
                self._refuse(len(made.ids))
        ready.sort(key=lambda one: len(one[1].ids))
        for first in range(0, len(ready), batch):
            part = ready[first : first + batch]
            encoded = [one for _, one in part]
            row = packed(encoded)
            for (at, _), value in zip(part, self.head(row.hidden(self.model)[row.ends]).tolist(), strict=True):
                found[at] = value
        return found

    def _refuse(self, length: int) -> None:
        raise DataError(f"a question with its answer has {length} tokens, the reward model was trained on at most {self.facts.max_tokens}")

    def _prompt(self, item: Item) -> list[int]:
        """Ids up to where an answer about the item begins."""
        return encode(item, self.tokenizer, self.facts.style, False).ids

    def _reasoned(self, items: Sequence[Item]) -> list[Item]:
        """Items with reasoning: the model's most likely one where none is given, none where it did not end."""
        out, todo = list(items), [at for at, item in enumerate(items) if not item.reasoning]
        if not todo:
            return out
        prompts = [self._prompt(items[at]) for at in todo]
        rooms = [self.facts.max_tokens - len(ids) - 1 for ids in prompts]
        if min(rooms) < 1:
            self._refuse(max(map(len, prompts)))
        if self._llm is None:
            self._llm = LLM.from_model(self.model, self.tokenizer, speculative=0)
        params = [SamplingParams(max_tokens=min(self.facts.max_reasoning_tokens, room), temperature=0.0) for room in rooms]
        for at, made in zip(todo, self._llm.generate(prompts, params), strict=True):
            one = made.outputs[0]
            out[at] = replace(items[at], reasoning=one.text if one.finish_reason == "stop" and one.text.strip() else "")
        return out

    def value(self, score: float) -> float:
        """A raw score as the chance of being preferred to an average answer."""
        return 1.0 / (1.0 + math.exp(min(700.0, self.facts.mean - score)))

    def prefetch(self, cases: Sequence[tuple[Problem, Answer]]) -> None:
        """Scores many answers at once, for calls that follow; what is too long is left to its own call."""
        items = [item for problem, answer in cases if (item := item_of(problem, answer)) is not None]
        spare = 1 if self.facts.reasoning else -1
        items = [item for item in dict.fromkeys(items) if len(self._prompt(item)) + spare < self.facts.max_tokens]
        self._known = dict(zip(items, self.scores(items), strict=True)) if items else {}

    def __call__(self, problem: Problem, answer: Answer) -> Outcome:
        """The reward component `model`: the answer behind the reasoning, whole, judged with the gold answer where there is one."""
        item = item_of(problem, answer)
        if item is None:
            return Outcome("wrong", 0.0, "no whole answer")
        score = self._known[item] if item in self._known else self.scores([item])[0]
        if not math.isfinite(score):
            return unknown("the reward model came to no score")
        value = self.value(score)
        return Outcome("right" if value > 0.5 else "wrong", value, f"score {score:.4g}")


def reward_folder(path: Path) -> Path:
    """Where the model, or the adapter, of a reward run or folder lies; CheckpointError where there is none."""
    for place in (path / "hf", path / "adapter", path):
        if (place / FACTS_NAME).is_file():
            return place
    what = "holds no finished reward model" if path.is_dir() else "is not a folder"
    raise CheckpointError(f"{path} {what}; train one: rorqual reward-model --model DIR --data pairs.jsonl --out {path}")


def reward_base(place: Path) -> Base:
    """The model of a reward model's folder; of an adapter's, the base that its configuration names with the adapter over it."""
    if not (place / peft.CONFIG).is_file():
        return open_base(place)
    below = open_base(str(peft.read_config(place).get("base_model_name_or_path")))
    return replace(below, path=place, adapters=(*below.adapters, place))


def is_reward(target: str) -> bool:
    """Whether a reward model stands behind a name, not a judge: a folder with the facts of one."""
    place = Path(target)
    if target.startswith(("http://", "https://")):
        return False
    return any((one / FACTS_NAME).is_file() for one in (place / "hf", place / "adapter", place))


def open_reward(target: str, *, api_key: str | None = None) -> tuple[Component, dict[str, Any]]:
    """The reward component `model` of a reward model's folder; of any other folder, or a server, as a judge. Facts are for a manifest."""
    if is_reward(target):
        place = Path(target)
        reward = RewardModel.load(place)
        facts = {"kind": "reward model", "path": str(place.resolve()), "weights": reward_base(reward_folder(place)).fingerprint()}
        return reward, facts | asdict(reward.facts)
    from rorqual.posttrain.generate import open_teacher
    from rorqual.posttrain.judge import Judge, JudgeConfig

    teacher = open_teacher(target, api_key=api_key)
    return Judge(teacher, JudgeConfig()), {"kind": "judge", **teacher.describe(), "settings": asdict(JudgeConfig())}
