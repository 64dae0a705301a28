"""Training data from a teacher's answers (report section 5.1): draw, verify, filter, choose, write in two variants.

    summary = distill(problems, teacher, "out", DistillConfig(drawing=Drawing(n=8)))

OUT/sft.jsonl       <problem, original answer> and <system prompt, problem, reasoned answer>, as messages that `rorqual sft` takes
OUT/pairs.jsonl     a right and a wrong answer to the same problem, for a reward model
OUT/answers.jsonl   every draft with its verdicts and what became of it
OUT/manifest.json   where all this comes from: teacher, problems, evaluation files, settings, counts, hashes

Every draft has exactly one fate, so that the counts add up. Drafts are on disk, judged, as soon as they come: a killed or abandoned call
goes on with the next problem. Filters and choice are functions of these records alone; the same records give the same files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rorqual.errors import ConfigError, RunError
from rorqual.eval.results import Progress
from rorqual.posttrain.decontaminate import EvaluationText
from rorqual.posttrain.filters import FilterConfig, Seen, overlap, rejected
from rorqual.posttrain.generate import Draft, Drawing, Teacher, TeacherGone
from rorqual.posttrain.presets import GRPOConfig
from rorqual.posttrain.problems import Problem, Problems
from rorqual.posttrain.reward_data import Batched
from rorqual.posttrain.rewards import Component, Rewards
from rorqual.train.records import number, one_of, to_plain, whole
from rorqual.train.rundir import RunFolder, write_atomic

FORMAT = "rorqual-distill-1"
SYSTEM = (
    "Think the problem through before you answer. Reflect on each step, verify the result by another way or by putting it back in, and "
    "correct what does not hold. Then give the answer in short, in the form that the problem asks for."
)
"""The system prompt of the second variant; the report says what its own asks for, not how it reads."""
_ALIKE = 0.5  # drafts of one problem that share more of their word runs are one answer twice
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DistillConfig:
    """What decides the data beside problems, teachers and evaluation files."""

    drawing: Drawing = field(default_factory=lambda: Drawing(n=4))
    filters: FilterConfig = field(default_factory=FilterConfig)
    keep: int = 1
    """Reasoned answers kept of each problem."""
    pick: Literal["shortest", "reward", "diverse"] = "shortest"
    """Which of the good ones: concise ones first (report section 5.1), the reward model's best, or those least like one another."""
    min_reward: float = 0.5
    """Least score of the reward model, where there is one."""
    system: str = SYSTEM
    ask_with_system: bool = False
    """Whether the teacher sees the system prompt too."""
    unjudged: Literal["drop", "keep"] = "drop"
    """What happens to answers of problems that no rule and no reward model can judge."""
    reward_seconds: float = 60.0
    """Limit for judging one answer by one component."""

    def __post_init__(self) -> None:
        whole("keep", self.keep, 1)
        one_of("pick", self.pick, ("shortest", "reward", "diverse"))
        one_of("unjudged", self.unjudged, ("drop", "keep"))
        number("min_reward", self.min_reward, float("-inf"))
        number("reward_seconds", self.reward_seconds, 0, above=True)


@dataclass(frozen=True)
class Sources:
    """Who and what beside the teacher: the original's teacher, original answers by problem id, the reward model, evaluation texts, the problems' file."""

    original: Teacher | None = None
    originals: Mapping[str, str] = field(default_factory=dict)
    reward: Component | None = None
    reward_facts: Mapping[str, Any] = field(default_factory=dict)
    evaluation: EvaluationText | None = None
    problems_file: str = ""


def distill(
    problems: Problems,
    teacher: Teacher,
    out: str | Path,
    config: DistillConfig,
    sources: Sources | None = None,
    show: Show = lambda *_: None,
) -> dict[str, Any]:
    """Makes, or goes on making, the data; returns the manifest. TeacherGone where a teacher goes away: all that came is kept.

    `show` gets (stage, done, in all). RunError for a folder that holds a finished or another distillation.
    """
    sources, out = sources or Sources(), Path(out)
    if config.pick == "reward" and sources.reward is None:
        raise ConfigError("pick ('reward') needs a reward model; give one, or use 'shortest' or 'diverse'")
    items = problems.items
    with RunFolder(out):
        if (out / "manifest.json").exists():
            raise RunError(f"{out} holds a finished distillation; choose another --out, or delete it")
        facts = _facts(problems, teacher, config, sources)
        rewards = Rewards(
            GRPOConfig(rewards={"accuracy": 1.0} | ({"model": 1.0} if sources.reward else {}), reward_seconds=config.reward_seconds),
            {"model": sources.reward} if sources.reward else None,
        )
        try:
            if sources.reward is None and config.unjudged == "drop":
                rewards.check(items)
            dirty = {one.id: gram for one in items if sources.evaluation and (gram := sources.evaluation.found(one.question))}
            clean = [one for one in items if one.id not in dirty]
            with Progress(out / "answers.jsonl", facts) as progress:
                _draw("reasoned", teacher, clean, config, progress, rewards, sources.reward, show)
                if sources.original is not None:
                    _draw(
                        "original",
                        sources.original,
                        [one for one in clean if one.id not in sources.originals],
                        config,
                        progress,
                        rewards,
                        sources.reward,
                        show,
                    )
                made = _Selection(config, sources).run(clean, progress.records)
                return _write(out, problems, dirty, made, facts, config, sources, progress)
        finally:
            rewards.close()


def _facts(problems: Problems, teacher: Teacher, config: DistillConfig, sources: Sources) -> dict[str, Any]:
    """What the drafts and their verdicts depend on; filters and choice may change between two calls."""
    return {
        "teacher": teacher.describe(), "original": sources.original.describe() if sources.original else None, "problems": problems.fingerprint,
        "drawing": asdict(config.drawing), "system": config.system if config.ask_with_system else "", "reward": dict(sources.reward_facts),
        "evaluation": [one["sha256"] for one in sources.evaluation.files] if sources.evaluation else [],
    }  # fmt: skip


def domain_of(problem: Problem) -> str:
    """What decides which expert is asked: the problem's `domain`, else its kind."""
    return str(problem.data.get("domain") or problem.kind)


# ---------------------------------------------------------------------- drafts


def _draw(
    stage: str,
    teacher: Teacher,
    items: Sequence[Problem],
    config: DistillConfig,
    progress: Progress,
    rewards: Rewards,
    reward: Component | None,
    show: Show,
) -> None:
    known = progress.records.get(stage, {})
    todo = {one.id: one for one in items if one.id not in known}
    done = len(items) - len(todo)
    show(stage, done, len(items))
    how = config.drawing
    if stage == "original":
        how = Drawing(1, 0.0, 1.0, how.max_tokens, how.seed, False)
    asked = [(one.id, _asked(one, config.system if stage == "reasoned" and config.ask_with_system else "")) for one in todo.values()]
    try:
        for name, found in teacher.draw(asked, how):
            record: dict[str, Any] = {"id": name}
            if isinstance(found, str):
                record["failed"] = found
            else:
                if isinstance(reward, Batched):
                    reward.prefetch([(todo[name], draft.answer()) for draft in found])
                record["drafts"] = [_judged(todo[name], draft, rewards, bool(how.thinking)) for draft in found]
            progress.put(stage, [record])
            done += 1
            show(stage, done, len(items))
    except TeacherGone as error:
        raise TeacherGone(
            f"{error}. The answers to {done} of {len(items)} problems are in {progress.path}; the same command goes on from there"
        ) from None


def _asked(problem: Problem, system: str) -> list[Mapping[str, Any]]:
    turns = list(problem.messages)
    if system and not any(message["role"] == "system" for message in turns):
        turns.insert(0, {"role": "system", "content": system})
    return turns


def _judged(problem: Problem, draft: Draft, rewards: Rewards, thinking: bool) -> dict[str, Any]:
    outcomes = rewards.judge(problem, draft.answer(thinking)).outcomes
    said = {name: {"verdict": one.verdict, "value": one.value} | ({"note": one.note} if one.note else {}) for name, one in outcomes.items()}
    return asdict(draft) | {"outcomes": said}


# ---------------------------------------------------------------------- choice


@dataclass
class _Made:
    """`rows` for sft.jsonl, `pairs`, and every record with each draft's fate; `counts` of drafts by stage and fate."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {"reasoned": Counter(), "original": Counter()})
    matches: dict[str, str] = field(default_factory=dict)


class _Selection:
    """Judged drafts to samples, problem by problem in the file's order."""

    def __init__(self, config: DistillConfig, sources: Sources) -> None:
        self._config, self._sources, self._made = config, sources, _Made()
        self._seen = {"reasoned": Seen(), "original": Seen()}

    def run(self, items: Sequence[Problem], records: Mapping[str, Mapping[str, dict[str, Any]]]) -> _Made:
        """All samples, and what became of each draft."""
        for problem in items:
            reasoned = self._fates("reasoned", problem, records.get("reasoned", {}).get(problem.id), self._config.keep)
            given = self._sources.originals.get(problem.id)
            record = records.get("original", {}).get(problem.id)
            if given is not None:  # the file's own answer is trusted and filtered
                record = {"drafts": [asdict(Draft("", given, False, True, len(given.split()))) | {"outcomes": {}}]}
            original = self._fates("original", problem, record, 1, trusted=given is not None)
            by = {"reasoned": "teacher", "original": "file" if given is not None else "original teacher"}
            for stage, kept in (("original", original), ("reasoned", reasoned)):
                for at, draft in kept:
                    self._made.rows.append(self._row(problem, stage, at, draft, by[stage]))
            self._pair(problem, records.get("reasoned", {}).get(problem.id))
        return self._made

    def _fates(
        self, stage: str, problem: Problem, record: Mapping[str, Any] | None, keep: int, trusted: bool = False
    ) -> list[tuple[int, dict[str, Any]]]:
        counts, kept = self._made.counts[stage], []
        if record is None:
            return []
        if "failed" in record:
            counts["failed"] += 1
            self._made.records.append({"stage": stage, **record})
            return []
        drafts = record["drafts"]
        fates = ["" if trusted else self._verdict(draft) for draft in drafts]
        fates = [fate or self._filtered(stage, problem, draft) for fate, draft in zip(fates, drafts, strict=True)]
        good = [at for at, fate in enumerate(fates) if not fate]
        kept = [(at, drafts[at]) for at in self._picked(drafts, good)[:keep]]
        for at in good:
            fates[at] = "kept" if any(at == number for number, _ in kept) else "not picked"
        counts.update(fates)
        self._made.records.append({"stage": stage, "id": record.get("id", problem.id), "drafts": [
            {**draft, "fate": fate} for draft, fate in zip(drafts, fates, strict=True)
        ]})  # fmt: skip
        return kept

    def _verdict(self, draft: Mapping[str, Any]) -> str:
        """Why the judges leave a draft out, or ""."""
        if draft["cut"]:
            return "cut"
        if not draft["closed"]:
            return "format"
        rule, model = draft["outcomes"]["accuracy"], draft["outcomes"].get("model")
        if rule["verdict"] == "wrong":
            return "wrong"
        if model is not None and model["verdict"] != "unknown" and model["value"] < self._config.min_reward:
            return "low reward"
        judged = rule["verdict"] == "right" or (model is not None and model["verdict"] != "unknown")
        return "" if judged or self._config.unjudged == "keep" else "not judged"

    def _filtered(self, stage: str, problem: Problem, draft: Mapping[str, Any]) -> str:
        reason = rejected(problem.question, draft["reasoning"], draft["content"], draft["tokens"], self._config.filters)
        if reason:
            return reason
        text = f"{problem.question}\n{draft['reasoning']}\n{draft['content']}"
        if self._sources.evaluation is not None:
            for part in (draft["reasoning"], draft["content"]):
                if found := self._sources.evaluation.found(part):
                    self._made.matches[f"{problem.id} ({stage})"] = found
                    return "in evaluation data"
        return "duplicate" if self._seen[stage].again(text) else ""

    def _picked(self, drafts: Sequence[Mapping[str, Any]], good: Sequence[int]) -> list[int]:
        """Numbers of the good drafts, first choice first; ties go to the earlier one."""
        if self._config.pick == "reward":
            order = sorted(good, key=lambda at: (-_score(drafts[at]), at))
        else:
            order = sorted(good, key=lambda at: (drafts[at]["tokens"], at))
        if self._config.pick != "diverse":
            return order
        chosen: list[int] = []
        texts = {at: drafts[at]["reasoning"] + "\n" + drafts[at]["content"] for at in good}
        while order:
            best = min(order, key=lambda at: max((overlap(texts[at], texts[other]) for other in chosen), default=0.0))
            if chosen and max(overlap(texts[best], texts[other]) for other in chosen) > _ALIKE:
                break
            chosen.append(best)
            order.remove(best)
        return chosen

    def _row(self, problem: Problem, stage: str, at: int, draft: Mapping[str, Any], by: str) -> dict[str, Any]:
        turns = [dict(message) for message in (_asked(problem, self._config.system) if stage == "reasoned" else problem.messages)]
        answer = {"role": "assistant", "content": draft["content"]}
        if draft["reasoning"]:
            answer["reasoning_content"] = draft["reasoning"]
        source = {"problem": problem.id, "domain": domain_of(problem), "variant": stage, "draft": at, "by": by}
        return {"messages": [*turns, answer], "source": source}

    def _pair(self, problem: Problem, record: Mapping[str, Any] | None) -> None:
        """The first right and the first wrong whole answer: what a rule knows, for a model to learn."""
        drafts = [draft for draft in (record or {}).get("drafts", []) if not draft["cut"] and draft["content"].strip()]
        said = [draft["outcomes"]["accuracy"]["verdict"] for draft in drafts]
        if "right" not in said or "wrong" not in said:
            return
        chosen, rejected_one = (drafts[said.index(word)]["content"] for word in ("right", "wrong"))
        pair: dict[str, Any] = {"messages": list(map(dict, problem.messages)), "chosen": chosen, "rejected": rejected_one}
        self._made.pairs.append(pair | ({"reference": problem.answer} if problem.answer else {}) | {"source": {"problem": problem.id}})


def _score(draft: Mapping[str, Any]) -> float:
    value = draft["outcomes"].get("model", {}).get("value")
    return value if isinstance(value, float) and value == value else float("-inf")


# ---------------------------------------------------------------------- files


def _write(
    out: Path, problems: Problems, dirty: Mapping[str, str], made: _Made, facts: Mapping[str, Any], config: DistillConfig, sources: Sources, progress: Progress
) -> dict[str, Any]:  # fmt: skip
    files = {}
    for name, rows in (("sft.jsonl", made.rows), ("pairs.jsonl", made.pairs), ("answers.jsonl", made.records)):
        text = "".join(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace").decode() + "\n" for row in rows)
        write_atomic(out / name, text)
        files[name] = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "lines": len(rows)}
    solved = sum(any(draft["fate"] == "kept" for draft in one.get("drafts", [])) for one in made.records if one["stage"] == "reasoned")
    manifest = {
        "format": FORMAT, "rorqual": _version(), **facts, "problems_file": sources.problems_file, "evaluation_files": sources.evaluation.files if sources.evaluation else [],
        "settings": to_plain(config),
        "counts": {
            "problems": len(problems.items), "problems_rejected": dict(problems.rejected), "problems_in_evaluation_data": len(dirty), "problems_solved": solved,
            "drafts": {stage: dict(sorted(found.items())) for stage, found in made.counts.items()},
        },
        "evaluation_matches": dict(dirty) | made.matches, "files": files,
    }  # fmt: skip
    write_atomic(out / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    progress.finish()
    return manifest


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rorqual")
    except PackageNotFoundError:  # run from its source folder
        return ""


def originals_of(path: str | Path, problems: Problems) -> dict[str, str]:
    """Answers that the problems' file brings, by problem id: `response`, `solution` or `original`, and GSM8K's worked solutions."""
    from rorqual.errors import RorqualError
    from rorqual.posttrain.problems import problem_of

    found = {
        one.id: str(text)
        for one in problems.items
        if (text := next((one.data[n] for n in ("response", "solution", "original") if one.data.get(n)), None))
    }
    for line in Path(path).read_bytes().split(b"\n"):
        if b"####" not in line:
            continue
        try:
            raw = json.loads(line.decode("utf-8-sig"))
            worked, _, final = str(raw["answer"]).rpartition("####")
            found.setdefault(problem_of(raw).id, f"{_unmarked(worked).strip()}\n\\boxed{{{final.strip()}}}")
        except (ValueError, RecursionError, KeyError, TypeError, RorqualError):
            continue
    return {name: text for name, text in found.items() if text.strip()}


def _unmarked(text: str) -> str:
    """Without GSM8K's calculator marks, `<<48/2=24>>`."""
    return re.sub(r"<<[^<>]*>>", "", text)
