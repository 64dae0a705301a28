"""Reinforcement learning with groups (report section 5.2.2): questions, answers, rewards, advantages, updates, again.

    result = run_grpo(GRPORun(model="runs/laptop-sft", data="problems.jsonl"), "runs/laptop-grpo")
    LLM("runs/laptop-grpo/hf")

One rollout of `prompts` questions with `group` answers each feeds `minibatches` optimiser steps. Rewards are rules (posttrain.rewards) or
judges of the caller's. A run that is interrupted, or killed, goes on to the same bits: see posttrain.grpo_state for what is kept.
Which questions come is a count, how they are answered a function of (weights, seed, count).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rorqual.adapters import lora, peft
from rorqual.checkpoint import folder as folders
from rorqual.checkpoint import hf, resume
from rorqual.data import counters
from rorqual.errors import ConfigError, DataError, NonFiniteError, RorqualError
from rorqual.inference.prompts import end_ids
from rorqual.inference.sampler import key
from rorqual.posttrain import update
from rorqual.posttrain.advantages import group_advantages
from rorqual.posttrain.answers import MAX_TEXT, AnswersLog, summary
from rorqual.posttrain.base import Base, open_base
from rorqual.posttrain.buffer import Group
from rorqual.posttrain.folder import TuningFolder
from rorqual.posttrain.grpo_config import GRPORun
from rorqual.posttrain.grpo_state import GRPOState
from rorqual.posttrain.problems import Problem, Problems, generate_problems, read_problems
from rorqual.posttrain.remote import RemoteRollout
from rorqual.posttrain.rewards import Component, Judged, Rewards
from rorqual.posttrain.rollout import Answer, LocalRollout, Prompt, Rollout, render_prompt
from rorqual.posttrain.sft import write_tokenizer
from rorqual.tokenizer.bpe import Tokenizer
from rorqual.train.metrics import MetricsLog, Progress, memory_bytes
from rorqual.train.rundir import truncate_metrics
from rorqual.train.signals import StopRequest
from rorqual.train.state import choose_device


@dataclass(frozen=True)
class GRPOResult:
    """How a call ended: `signal` that stopped it (None: finished), the folder, and mean rewards of the first and the last rollout of it.

    silent: rollouts at its end of which no group had rewards that differ.
    """

    step: int
    signal: int | None
    folder: Path
    first_reward: float | None
    last_reward: float | None
    silent: int = 0


def run_grpo(
    run: GRPORun, out: str | Path, *, problems: Problems | None = None, judges: Mapping[str, Component] | None = None, rollout: Rollout | None = None,
    resume_run: bool = False, overwrite: bool = False, progress: bool = True, api_key: str | None = None,
) -> GRPOResult:  # fmt: skip
    """Trains to the end, or until SIGINT or SIGTERM, which save first; writes `out`/hf, or `out`/adapter with LoRA.

    `problems` stand for what `run` names; `judges` are reward components of the caller's own, by name; `rollout` is where answers come
    from in place of the engine in this process; `api_key` is for servers. DataError where no group of many rollouts has a signal.
    """
    if run.threads is not None:
        torch.set_num_threads(run.threads)
    device, dtype = choose_device(run)
    asked = problems or read_questions(run)
    base = open_base(run.model)
    _check(run, base)
    tokenizer, rewards = base.tokenizer(), Rewards(run.grpo, {**_judges(run, api_key), **(judges or {})})
    try:
        rewards.check(asked.items)
        with TuningFolder(out) as folder, StopRequest() as stop:
            lineage = {
                "kind": run.kind, "base": str(base.path.resolve()), "base_fingerprint": base.fingerprint(), "tokenizer": tokenizer.fingerprint,
                "problems": len(asked.items), "problems_fingerprint": asked.fingerprint, "rejected": asked.rejected, "examples": asked.examples,
            }  # fmt: skip
            if overwrite and not resume_run and folder.config.exists() and folder.lineage.exists():
                (folder.path / "answers.jsonl").unlink(missing_ok=True)
            folder.open(run, lineage, resume=resume_run, overwrite=overwrite)
            fingerprints = {"base_fingerprint": base.fingerprint(), "problems_fingerprint": asked.fingerprint}
            state = GRPOState.build(run, base, device, dtype)
            newest = resume.latest(folder.checkpoints)
            if newest is not None:
                state.load(newest, fingerprints)
            ends = end_ids(base.tokenizer_folder, tokenizer)
            if rollout is None and run.rollout_url is not None:
                rollout = RemoteRollout(run.rollout_url, tokenizer, style=run.grpo.style, end_ids=ends, api_key=api_key)
            return _Loop(run, base, tokenizer, state, asked.items, rewards, rollout, ends, folder, fingerprints, progress).go(stop)
    finally:
        rewards.close()


def _judges(run: GRPORun, api_key: str | None) -> dict[str, Component]:
    if run.reward_model is None:
        return {}
    from rorqual.posttrain.reward_model import open_reward

    return {"model": open_reward(run.reward_model, api_key=api_key)[0]}


def read_questions(run: GRPORun) -> Problems:
    """The questions that a configuration names."""
    if run.tasks:
        return generate_problems(run.tasks, run.task_size, run.grpo.seed)
    if run.data is None:
        raise ConfigError("no questions: give data (a file of JSON lines) or tasks")
    return read_problems(run.data)


def _check(run: GRPORun, base: Base) -> None:
    limit = base.config.max_position_embeddings
    if run.grpo.max_new_tokens >= limit:
        raise ConfigError(f"max_new_tokens ({run.grpo.max_new_tokens}) must be below the model's max_position_embeddings ({limit})")
    if run.lora is None and base.config.quantization_config is not None:
        raise ConfigError(
            f"{base.path} is in FP8; train adapters over it (--lora), or convert it first: rorqual export {base.path} OUT --to bf16"
        )


class _Loop:
    """The steps of one call."""

    def __init__(
        self, run: GRPORun, base: Base, tokenizer: Tokenizer, state: GRPOState, problems: Sequence[Problem], rewards: Rewards, rollout: Rollout | None,
        ends: Sequence[int], folder: TuningFolder, fingerprints: Mapping[str, str], show: bool,
    ) -> None:  # fmt: skip
        self.run, self.config, self.base, self.tokenizer, self.state = run, run.grpo, base, tokenizer, state
        self.problems, self.rewards, self.folder, self.fingerprints = problems, rewards, folder, fingerprints
        self._merged = lora.merged_copy(state.model) if run.lora is not None and run.weights != "fp8" else None
        self.rollout: Rollout = rollout or LocalRollout(
            self._merged or state.model, tokenizer, style=self.config.style, end_ids=ends, max_num_seqs=max(64, min(256, self.config.prompts * self.config.group)),
            record_routes=self.config.routing_replay == "r3" and bool(base.config.moe_layers),
        )  # fmt: skip
        self.trainee = update.Trainee(state.model, state.optimizer, state.reference, tokenizer.vocab_size)
        truncate_metrics(folder.metrics, state.position.step)
        self.log = MetricsLog(folder.metrics)
        self.answers = AnswersLog(folder.path / "answers.jsonl", state.position.rollouts)
        self.progress = Progress(self.config.steps, state.position.step, show)
        self.order: tuple[int, Any] = (-1, None)
        self.first: float | None = None
        self.last: float | None = None

    def go(self, stop: StopRequest) -> GRPOResult:
        """Trains, saves, exports."""
        at, config = self.state.position, self.config
        try:
            self.log.write(
                "event", event="resumed" if at.step else "started", step=at.step, total_steps=config.steps, problems=len(self.problems),
                device=str(self.state.model.head_weight.device),
            )  # fmt: skip
            while at.step < config.steps and not self._out_of_time():
                began = time.monotonic()
                if not self.state.waiting:
                    self._sample_or_save()
                done = stop.signal is None and self._step(stop, began)
                if not done:
                    at.seconds += time.monotonic() - began
                    self._save()
                    self.log.write("event", event="stopped", step=at.step, signal=stop.signal)
                    self.progress.say(f"stopped at step {at.step} of {config.steps}; saved; continue with --resume")
                    return self._result(stop.signal)
                if at.step % config.checkpoint_every_steps == 0:
                    self._save()
            if at.step not in resume.steps(self.folder.checkpoints):
                self._save()
            stop.release()  # everything is saved
            self._export()
            return self._result(None)
        finally:
            self.progress.close()
            self.log.close()
            self.answers.close()

    def _out_of_time(self) -> bool:
        return self.run.max_seconds is not None and self.state.position.seconds >= self.run.max_seconds

    # ------------------------------------------------------------------ one rollout

    def _sample_or_save(self) -> None:
        """A rollout. Where it fails (a server that went away, no signal) the steps before it are saved first, as if it had not begun."""
        before = replace(self.state.position)
        try:
            self._sample()
        except RorqualError as error:
            self.state.position, self.state.figures = before, {}
            if before.step:
                self._save()
                self.progress.say(f"saved step {before.step}; --resume goes on from there ({type(error).__name__})")
            raise

    def _sample(self) -> None:
        """Fills the state with the groups of a rollout, judged, ready for their steps."""
        at, config = self.state.position, self.config
        if self._merged is not None:
            lora.merged_copy(self.state.model, self._merged)
        if isinstance(self.rollout, RemoteRollout) and self.rollout.follows:
            self._publish(self.rollout)
        clock = {"generation_seconds": 0.0, "reward_seconds": 0.0}
        kept: list[Group] = []
        records: list[dict[str, Any]] = []
        judged: list[Judged] = []
        attempts = 1 + (config.refill_attempts if config.groups_without_signal == "refill" else 0)
        for attempt in range(attempts):
            groups, said, lines = self._groups(config.prompts - len(kept), clock)
            judged += said
            records += lines
            if config.groups_without_signal == "refill":
                kept += [g for g in groups if g.signal or attempt == attempts - 1]
            else:
                kept += [replace(g, dropped=not g.signal) if config.groups_without_signal == "drop" else g for g in groups]
            if len(kept) == config.prompts:
                break
        at.rollouts += 1
        at.silent = 0 if any(g.signal for g in kept) else at.silent + 1
        self.answers.write([{"rollout": at.rollouts, "step": at.step + 1, **record} for record in records])
        self.state.figures = {"rollout": at.rollouts, **summary(records, judged), **clock}
        self._refuse_silence(judged)
        began = time.monotonic()
        kept = update.prepare(self.trainee, kept, config)
        if config.minibatches > 1 or config.routing_replay == "r2":
            size = config.prompts // config.minibatches
            parts = [update.old_logprobs(self.trainee, kept[first : first + size], config) for first in range(0, len(kept), size)]
            kept = [group for part in parts for group in part]
        self.state.figures["old_seconds"] = time.monotonic() - began
        self.state.waiting = kept

    def _groups(self, count: int, clock: dict[str, float]) -> tuple[list[Group], list[Judged], list[dict[str, Any]]]:
        """`count` groups of the next questions, what was said about each answer, and their lines of answers.jsonl."""
        at, config = self.state.position, self.config
        numbers, keys, prompts = self._questions(count)
        began = time.monotonic()
        sampled = self.rollout.sample(prompts, config, keys)
        clock["generation_seconds"] += time.monotonic() - began
        began = time.monotonic()
        pairs = [(self.problems[number], answer) for number, answers in zip(numbers, sampled, strict=True) for answer in answers]
        judged = self.rewards.judge_all(pairs)
        clock["reward_seconds"] += time.monotonic() - began
        table = torch.tensor([one.reward for one in judged]).view(count, -1)
        found = group_advantages(table, config.objective.scale)
        groups, lines = [], []
        for place, (number, answers) in enumerate(zip(numbers, sampled, strict=True)):
            groups.append(Group(number, answers, table[place], found.values[place], bool(found.signal[place])))
            said = judged[place * len(answers) : (place + 1) * len(answers)]
            lines.append(self._line(self.problems[number], groups[-1], said, float(found.mean[place]), float(found.std[place])))
        at.answers += len(judged)
        at.tokens += sum(len(answer.ids) for answers in sampled for answer in answers)
        return groups, judged, lines

    def _questions(self, count: int) -> tuple[list[int], list[int], list[Prompt]]:
        """Numbers, keys of the randomness, and prompts of the next `count` questions that fit into the model's context."""
        at, config = self.state.position, self.config
        room = self.base.config.max_position_embeddings - config.max_new_tokens
        numbers: list[int] = []
        keys: list[int] = []
        prompts: list[Prompt] = []
        left_out = 0
        while len(numbers) < count:
            epoch, place = divmod(at.drawn, len(self.problems))
            if self.order[0] != epoch:
                self.order = epoch, counters.permutation(counters.key("grpo-questions", config.seed, epoch), len(self.problems))
            number = int(self.order[1][place])
            prompt = render_prompt(self.problems[number].messages, self.tokenizer, config)
            at.drawn += 1
            if len(prompt.ids) > room:
                at.over_long, left_out = at.over_long + 1, left_out + 1
                if left_out == len(self.problems):
                    raise DataError(
                        f"all {left_out} questions have more than {room} tokens, which is what the model's context ({room + config.max_new_tokens}) "
                        f"leaves beside max_new_tokens ({config.max_new_tokens}); lower max_new_tokens, or give shorter questions"
                    )
                continue
            numbers.append(number)
            keys.append(key(config.seed, 0, at.drawn, "rollout"))
            prompts.append(prompt)
        return numbers, keys, prompts

    def _line(self, problem: Problem, group: Group, said: Sequence[Judged], mean: float, std: float) -> dict[str, Any]:
        keeps = self.config.log_answers
        return {
            "problem": problem.id, "question": problem.question if keeps else "", "gold": problem.answer, "mean": mean, "std": std, "signal": group.signal,
            "answers": [
                {
                    "text": _shown(answer) if keeps else "", "tokens": len(answer.ids), "cut": answer.cut, "reward": one.reward, "advantage": advantage,
                    "logprob": None if answer.logprobs is None else float(answer.logprobs.sum()),
                    "components": {
                        name: {"value": outcome.value, "verdict": outcome.verdict, **({"note": outcome.note} if outcome.note else {})}
                        for name, outcome in one.outcomes.items() if outcome.applies
                    },
                }
                for answer, one, advantage in zip(group.answers, said, group.advantages.tolist(), strict=True)
            ],
        }  # fmt: skip

    def _refuse_silence(self, judged: Sequence[Judged]) -> None:
        """DataError where rollout after rollout has no group whose rewards differ."""
        at, config = self.state.position, self.config
        if at.silent < config.max_rollouts_without_signal:
            return
        known = [one.reward for one in judged if not math.isnan(one.reward)]
        what = (
            f"every reward of the last rollout is {known[0]:g}"
            if known and min(known) == max(known)
            else "within each group all rewards are equal"
        )
        if not known:
            notes = [outcome.note for one in judged for outcome in one.outcomes.values() if outcome.verdict == "unknown"]
            what = f"no answer of the last rollout could be judged ({notes[0] if notes else 'no reason given'})"
        raise DataError(
            f"no group of {at.silent} rollouts in a row ({at.silent * config.prompts * config.group:,} answers) has rewards that differ, so there is nothing to "
            f"learn from: {what}. Use easier or harder questions, a model that is sometimes right (fine-tune it first), a larger --group or a higher "
            f"temperature; {self.answers.path} has the answers"
        )

    # ------------------------------------------------------------------ one step

    def _step(self, stop: StopRequest, began: float) -> bool:
        """One optimiser step on the groups that wait longest; False where a signal came first."""
        at, config, state = self.state.position, self.config, self.state
        size = config.prompts // config.minibatches
        groups = state.waiting[:size]
        rate, trained = self.run.rate(at.step), time.monotonic()
        figures = update.update(self.trainee, groups, config, rate, lambda: stop.signal is not None)
        if figures.outcome == "interrupted":
            return False
        now = time.monotonic()
        state.waiting = state.waiting[size:]
        at.step += 1
        at.seconds += now - began
        at.skipped += figures.outcome == "non-finite"
        at.skipped_in_a_row = at.skipped_in_a_row + 1 if figures.outcome == "non-finite" else 0
        if config.reference_refresh and state.reference is not None and at.step % config.reference_refresh == 0:
            state.refresh_reference()
        self.log.write(
            "train", step=at.step, tokens=at.tokens, answers=at.answers, questions=at.drawn, lr=rate, **figures.record(), **state.figures,
            training_seconds=now - trained, step_seconds=now - began, seconds=at.seconds, over_long=at.over_long, skipped_steps=at.skipped,
            reference_refreshes=at.refreshes, memory_bytes=memory_bytes(state.model.head_weight.device), judges=self.rewards.counters(),
        )  # fmt: skip
        reward = state.figures["reward_mean"]
        self.first, self.last = reward if self.first is None else self.first, reward
        self.progress.show(at.step, self._words(reward, now - began))
        if at.skipped_in_a_row >= config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"loss or gradient norm was not finite in {at.skipped_in_a_row} steps in a row, up to step {at.step}; the last checkpoint "
                f"({resume.latest(self.folder.checkpoints)}) is intact; lower the learning rate (now {rate:.3g})"
            )
        return True

    def _words(self, reward: float | None, seconds: float) -> str:
        figures = self.state.figures
        shown = "reward -" if reward is None else f"reward {reward:.3f}"
        parts = [f"{name} {one['mean']:.2f}" for name, one in figures["components"].items() if one["mean"] is not None]
        return f"{shown} ({', '.join(parts)})  {figures['length_mean']:.0f} tokens  {figures['groups_with_signal']} of {figures['groups']} groups with signal  {seconds:.1f} s"

    # ------------------------------------------------------------------ what stays

    def _save(self) -> None:
        self.state.save(self.folder.checkpoints, self.config.keep_checkpoints, self.fingerprints)

    def _export(self) -> None:
        """Writes the model folder, or the adapter, unless it is there."""
        state, folder = self.state, self.folder
        if (folder.hf / "config.json").is_file() or folder.adapter.is_dir():
            return
        tokenizer = write_tokenizer(self.base, self.tokenizer, self.config.style, folder.tokenizer)
        if self.run.lora is not None:
            with folders.new_folder(folder.adapter) as partial:
                plain = not self.base.adapters and not self.base.checkpoint
                peft.save(state.model, self.run.lora, str((self.base.folder if plain else self.base.path).resolve()), partial)
        else:
            named = resume.split_experts(state.weights())
            hf.export_tensors(self.base.config.with_(quantization_config=None), named, tokenizer, folder.hf, dtype=self.base.stored)
        self.log.write("event", event="exported", step=state.position.step)

    def _publish(self, rollout: RemoteRollout) -> None:
        """Gives our server the policy of now, in a folder that is replaced each time."""
        place = self.folder.path / "published"
        model = self._merged or self.state.model
        hf.export(model, self.base.tokenizer_folder, place, dtype=self.base.stored, replace=place.exists())
        rollout.publish(place, f"step-{self.state.position.step}")

    def _result(self, signal: int | None) -> GRPOResult:
        return GRPOResult(self.state.position.step, signal, self.folder.path, self.first, self.last, self.state.position.silent)


def _shown(answer: Answer) -> str:
    text = answer.text
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} ... {len(text) - MAX_TEXT} more characters"
