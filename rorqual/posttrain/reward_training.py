r"""Trains a reward model (report section 5.2.1; figures of DeepSeek-R1 section 2.3.4: one epoch, batch 256, rate 6e-6, 8,192 tokens).

    result = train_reward(RewardConfig(model="runs/sft", data="pairs.jsonl"), "runs/reward")

    pair:   -log sigmoid(r_chosen - r_rejected - margin)                     (Bradley-Terry)
    single: -log sigmoid(r) for a good answer, -log sigmoid(-r) for another
    plus    w_reasoning * mean -log p(token) over the judge's reasoning, plus w_centre * (sum of a case's scores)^2

Sums over a step are divided by the whole step's counts, so micro-batches change nothing; answers are packed, each isolated. Router biases and
MTP modules stay as they are. With LoRA adapters and the score train over frozen weights, and `out`/adapter is written in place of `out`/hf.
The rate falls as a cosine to a tenth (ours). A run that is interrupted saves, and goes on to the same bits.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from rorqual.adapters import lora, peft
from rorqual.checkpoint import folder as folders
from rorqual.checkpoint import hf, resume
from rorqual.data import counters
from rorqual.errors import ConfigError, DataError, NonFiniteError
from rorqual.eval.metrics import wilson
from rorqual.model.transformer import CausalLM
from rorqual.posttrain.base import Base, open_base
from rorqual.posttrain.folder import TuningFolder, check_same_start
from rorqual.posttrain.reward_config import RewardConfig
from rorqual.posttrain.reward_data import Case, Cases, Encoded, encode, held_out, read_cases
from rorqual.posttrain.reward_model import FACTS_NAME, HEAD_NAME, RewardFacts, RewardHead, packed
from rorqual.tokenizer import bpe, templates
from rorqual.train.metrics import MetricsLog, Progress
from rorqual.train.optim import AdamW
from rorqual.train.rundir import truncate_metrics, write_atomic
from rorqual.train.signals import StopRequest
from rorqual.train.state import choose_device

_MEASURED = 256  # cases whose scores give mean and std


@dataclass(frozen=True)
class Ready:
    """A case as ids."""

    items: tuple[Encoded, ...]
    margin: float
    label: bool | None


@dataclass(frozen=True)
class RewardResult:
    """How a call ended. `accuracy` on held-out cases with its 95% interval, None without any; `cases` says what was left out."""

    step: int
    steps: int
    signal: int | None
    folder: Path
    cases: Cases
    reasoning: bool
    loss: float | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    held_out: int = 0


# ---------------------------------------------------------------------- the loss


def case_losses(scores: Tensor, cases: Sequence[Ready], centre_weight: float = 0.0) -> Tensor:
    """Loss of each case, from the scores of all items, one case after the other."""
    out, at = [], 0
    for case in cases:
        own = scores[at : at + len(case.items)]
        at += len(case.items)
        difference = own[0] - own[1] - case.margin if case.label is None else own[0] if case.label else -own[0]
        out.append(-F.logsigmoid(difference) + centre_weight * own.sum() ** 2)
    return torch.stack(out)


def step_loss(
    model: CausalLM,
    head: RewardHead,
    cases: Sequence[Ready],
    *,
    num_cases: int,
    num_tokens: int,
    reasoning_weight: float,
    centre_weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss of a micro-batch as its part of the step's, scores, summed loss of the reasoning); `num_*` are the whole step's counts."""
    items = [item for case in cases for item in case.items]
    row = packed(items)
    hidden = row.hidden(model)
    scores = head(hidden[row.ends])
    loss = case_losses(scores, cases, centre_weight).sum() / num_cases
    spoken = scores.new_zeros(())
    if num_tokens and reasoning_weight:
        place = torch.cat([start + torch.arange(*item.reasoning) for start, item in zip(row.starts, items, strict=True)])
        targets = row.ids[0, place].to(hidden.device)
        spoken = F.cross_entropy(model.logits(hidden[place.to(hidden.device) - 1]), targets, reduction="sum")
        loss = loss + reasoning_weight * spoken / num_tokens
    return loss, scores.detach(), spoken.detach()


def micro_batches(cases: Sequence[Ready], limit: int) -> Iterator[list[Ready]]:
    """Neighbours whose tokens fit into a row of `limit` together; a larger case stands alone."""
    part: list[Ready] = []
    tokens = 0
    for case in cases:
        own = sum(len(item.ids) for item in case.items)
        if part and tokens + own > limit:
            yield part
            part, tokens = [], 0
        part.append(case)
        tokens += own
    if part:
        yield part


# ---------------------------------------------------------------------- a run


def train_reward(
    config: RewardConfig, out: str | Path, *, resume_run: bool = False, overwrite: bool = False, progress: bool = True,
    on_data: Callable[[int], None] | None = None,
) -> RewardResult:  # fmt: skip
    """Trains to the end, or until SIGINT or SIGTERM, which save first; writes `out`/hf, a model folder, or `out`/adapter, with the head beside it.

    `on_data` gets the most tokens that a row can have, before the model is read.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, dtype = choose_device(config)  # type: ignore[arg-type]
    base = open_base(config.model)
    check(config, base)
    tokenizer = base.tokenizer()
    style = templates.style_of(tokenizer)
    cases = read_cases(config.data, config.min_gap)
    reasoning = (
        any(item.reasoning for case in cases.items for item in case.items) if config.reasoning == "auto" else config.reasoning == "on"
    )
    limit = min(config.max_tokens, base.config.max_position_embeddings)
    ready = encode_cases(cases, tokenizer, style, reasoning, limit)
    if on_data is not None:
        sizes = [sum(len(item.ids) for item in one.items) for _, one in ready]
        on_data(min(sum(sizes), max(config.micro_batch_tokens, *sizes)))
    facts = RewardFacts(style, reasoning, limit, config.max_reasoning_tokens)
    with TuningFolder(out) as folder, StopRequest() as stop:
        prints = {"data_fingerprint": cases.fingerprint(), "base_fingerprint": base.fingerprint()}
        lineage = {"kind": config.kind, "base": str(base.path.resolve()), "tokenizer": tokenizer.fingerprint, **prints}
        folder.open(config, lineage, resume=resume_run, overwrite=overwrite)
        return _Loop(config, base, folder, cases, ready, facts, prints, device, dtype, progress).run(stop)


def check(config: RewardConfig, base: Base) -> None:
    """Refuses, before any work, what the model cannot take."""
    if config.lora is None and base.config.quantization_config is not None:
        raise ConfigError(
            f"{base.path} is in FP8; train adapters over it (--lora), or convert it first: rorqual export {base.path} OUT --to bf16"
        )


def encode_cases(cases: Cases, tokenizer: bpe.Tokenizer, style: str, reasoning: bool, limit: int) -> list[tuple[Case, Ready]]:
    """Cases as ids; what is too long or lacks its reasoning is counted. DataError where none is left."""
    out = []
    for case in cases.items:
        try:
            made = tuple(encode(item, tokenizer, style, reasoning) for item in case.items)
            if max(len(item.ids) for item in made) > limit:
                raise DataError(f"longer than {limit} tokens")
            out.append((case, Ready(made, case.margin, case.label)))
        except DataError as error:
            cases.rejected[str(error)] += 1
            cases.examples.setdefault(str(error), case.line)
    if not out:
        raise DataError(f"no case is left to learn from: {cases.summary()}")
    return out


class _Loop:
    """The steps of one call."""

    def __init__(
        self, config: RewardConfig, base: Base, folder: TuningFolder, cases: Cases, ready: Sequence[tuple[Case, Ready]], facts: RewardFacts,
        fingerprints: Mapping[str, str], device: torch.device, dtype: torch.dtype, show: bool,
    ) -> None:  # fmt: skip
        self.config, self.base, self.folder, self.cases, self.facts, self.fingerprints = config, base, folder, cases, facts, fingerprints
        self.held = [one for case, one in ready if held_out(case, config.seed, config.validation_share)]
        self.train = [one for case, one in ready if not held_out(case, config.seed, config.validation_share)]
        if not self.train:
            raise DataError(f"all {len(ready)} cases are held out; lower validation_share ({config.validation_share})")
        self.per_epoch = -(-len(self.train) // config.batch)
        self.total = config.epochs * self.per_epoch
        kept = "fp32" if config.lora is None else config.weights or ("fp32" if dtype == torch.float32 else "bf16")
        self.model = base.load(kept).to(device)
        if config.lora is not None:
            lora.apply(self.model, config.lora)
        self.head = RewardHead(base.config.hidden_size).to(device)
        masters: dict[str, Tensor] = {}
        named = dict(self._trained())
        if config.lora is None and dtype != torch.float32:
            masters = {name: p.detach().clone() for name, p in named.items()}
            self.model.to(dtype)
            named = dict(self._trained())
        self.optimizer = AdamW(named.items(), config.optimizer, masters)
        self.step = self.skipped = 0
        newest = resume.latest(folder.checkpoints)
        if newest is not None:
            self._restore(newest)
        truncate_metrics(folder.metrics, self.step)
        self.log, self.progress = MetricsLog(folder.metrics), Progress(self.total, self.step, show)
        self.loss: float | None = None

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Trunk, or its adapters, and head; the output matrix only where reasoning is learned, MTP modules never."""
        depth = self.base.config.num_hidden_layers
        own_head = self.facts.reasoning and self.config.reasoning_weight > 0
        for name, parameter in self.model.named_parameters():
            mtp = any(name.startswith(f"model.layers.{layer}.") for layer in range(depth, self.base.config.num_blocks))
            if parameter.requires_grad and not mtp and (own_head or not name.startswith("lm_head.")):
                yield name, parameter
        for name, parameter in self.head.named_parameters():
            yield f"reward_head.{name}", parameter

    def run(self, stop: StopRequest) -> RewardResult:
        """Trains, saves, measures, exports."""
        try:
            self.log.write(
                "event",
                event="resumed" if self.step else "started",
                step=self.step,
                total_steps=self.total,
                cases=len(self.train),
                held_out=len(self.held),
            )
            while self.step < self.total:
                if stop.signal is not None or not self._one(lambda: stop.signal is not None):
                    self._save()
                    self.progress.say(f"stopped at step {self.step} of {self.total}; saved; continue with --resume")
                    return self._result(stop.signal)
                if self.step % self.config.checkpoint_every_steps == 0 or self.step == self.total:
                    self._save()
            stop.release()  # everything is saved
            found = self._measure()
            self._export(found)
            return self._result(None, found)
        finally:
            self.progress.close()
            self.log.close()

    def _one(self, interrupted: Callable[[], bool]) -> bool:
        """One optimiser step; False where a signal came first."""
        began, config = time.monotonic(), self.config
        epoch, place = divmod(self.step, self.per_epoch)
        order = counters.permutation(counters.key(config.seed, "reward order", epoch), len(self.train))
        batch = [self.train[at] for at in order[place * config.batch : (place + 1) * config.batch].tolist()]
        tokens = sum(item.reasoning[1] - item.reasoning[0] for case in batch for item in case.items)
        self.optimizer.zero_grad()
        loss, right, spoken = 0.0, 0, 0.0
        for part in micro_batches(batch, config.micro_batch_tokens):
            if interrupted():
                self.optimizer.zero_grad()
                return False
            own, scores, said = step_loss(
                self.model, self.head, part, num_cases=len(batch), num_tokens=tokens, reasoning_weight=config.reasoning_weight, centre_weight=config.centre_weight
            )  # fmt: skip
            own.backward()  # type: ignore[no-untyped-call]
            self.optimizer.accumulate()
            loss, right, spoken = loss + float(own.detach()), right + correct(scores, part), spoken + float(said)
        norm, rate = self.optimizer.gradient_norm(), config.rate(self.step, self.total)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self.optimizer.step(rate, norm)
        self.optimizer.zero_grad()
        self.step, self.loss, self.skipped = self.step + 1, loss, 0 if finite else self.skipped + 1
        self.progress.update(self.step, loss, sum(len(i.ids) for c in batch for i in c.items) / (time.monotonic() - began))
        self.log.write(
            "train", step=self.step, outcome="updated" if finite else "non-finite", loss=loss, accuracy=right / len(batch), lr=rate, grad_norm=norm,
            reasoning_loss=spoken / tokens if tokens else None,
        )  # fmt: skip
        if self.skipped >= 10:
            raise NonFiniteError(
                f"loss or gradient norm was not finite in 10 steps in a row, up to step {self.step}; lower the learning rate ({rate:.3g})"
            )
        return True

    @torch.no_grad()
    def _measure(self) -> dict[str, Any]:
        """Accuracy on held-out cases, and mean and standard deviation of the scores (of training cases where none are held out)."""
        right, scores = 0, []
        for part in micro_batches(self.held or self.train[:_MEASURED], self.config.micro_batch_tokens):
            _, own, _ = step_loss(self.model, self.head, part, num_cases=1, num_tokens=0, reasoning_weight=0.0, centre_weight=0.0)
            right += correct(own, part)
            scores += own.tolist()
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores))
        if not math.isfinite(mean):
            raise NonFiniteError("the trained model's scores are not finite; lower the learning rate, or look at the data")
        found: dict[str, Any] = {"mean": mean, "std": std}
        if self.held:
            found |= {"accuracy": right / len(self.held), "interval": wilson(float(right), len(self.held))}
        self.log.write("validation", step=self.step, **{k: list(v) if isinstance(v, tuple) else v for k, v in found.items()})
        return found

    # ------------------------------------------------------------------ disk

    def _tensors(self) -> dict[str, Tensor]:
        return resume.split_experts(self.optimizer.master | {f"optimizer.{name}": t for name, t in self.optimizer.state().items()})

    def _save(self) -> None:
        if self.step not in resume.steps(self.folder.checkpoints):
            state = {"step": self.step, "updates": self.optimizer.updates, **self.fingerprints}
            resume.save(resume.step_folder(self.folder.checkpoints, self.step), self._tensors(), state)
        resume.prune(self.folder.checkpoints, self.config.keep_checkpoints)

    def _restore(self, newest: Path) -> None:
        stored = resume.read_state(newest)
        check_same_start(newest, stored, self.fingerprints)
        resume.load(newest, self._tensors())
        self.optimizer.updates, self.step = int(stored["updates"]), int(stored["step"])
        self.optimizer.sync_parameters()

    def _export(self, found: Mapping[str, Any]) -> None:
        """The model's folder; `reward.json`, written last, makes it a reward model."""
        master = self.optimizer.master
        if self.config.lora is not None:
            if not self.folder.adapter.exists():
                with folders.new_folder(self.folder.adapter) as partial:
                    plain = not self.base.adapters and not self.base.checkpoint
                    peft.save(self.model, self.config.lora, str((self.base.folder if plain else self.base.path).resolve()), partial)
                    self._describe(partial, found)
            return
        named = {name: master.get(name, t.detach()) for name, t in self.model.state_dict().items()}
        staged = self.folder.path / "staged"
        hf.export_tensors(
            self.base.config, resume.split_experts(named), self.base.tokenizer_folder, staged, dtype=self.base.stored, replace=True
        )
        self._describe(staged, found)
        if self.folder.hf.exists():  # of a call that was killed behind this line
            return
        staged.rename(self.folder.hf)

    def _describe(self, place: Path, found: Mapping[str, Any]) -> None:
        """Head and facts beside a model or an adapter."""
        master = self.optimizer.master
        save_file({name: master[f"reward_head.{name}"].cpu().contiguous() for name in ("weight", "bias")}, place / HEAD_NAME)
        facts = asdict(self.facts) | {"mean": found["mean"], "std": found["std"]}
        write_atomic(place / FACTS_NAME, json.dumps(facts, indent=1) + "\n")

    def _result(self, signal: int | None, found: Mapping[str, Any] | None = None) -> RewardResult:
        found = found or {}
        return RewardResult(
            self.step, self.total, signal, self.folder.path, self.cases, self.facts.reasoning, self.loss, found.get("accuracy"), found.get("interval"), len(self.held)
        )  # fmt: skip


def correct(scores: Tensor, cases: Sequence[Ready]) -> int:
    """Cases whose better answer has the higher score, or whose single answer is on its label's side of 0."""
    values, at, right = scores.tolist(), 0, 0
    for case in cases:
        own = values[at : at + len(case.items)]
        at += len(case.items)
        right += own[0] > own[1] if case.label is None else (own[0] > 0) == case.label
    return right
