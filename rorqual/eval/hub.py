"""Rows of Hugging Face `datasets` as a task's files: `--data hf:openai/gsm8k:main:test`, or `--data hf` for each task's own home. No torch.

    hf                              the data set that HOMES names for the task
    hf:NAME[:CONFIG[:SPLIT]]        this one, from the hub or a local folder; the split is the home's, else "test", else "validation"

NAME is a name on the hub or a folder with data files (Parquet, JSON, CSV), as `datasets.load_dataset` takes it; a data set that would run a
script of its own is refused by `datasets` itself, from version 4 on. A field map gives a column, or a part of one ("answer.value"), the name
that the task wants; other columns stay as they are. Shots come from the split for development or training, where there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rorqual.errors import ConfigError, DataError, MissingExtraError
from rorqual.eval.data import Row
from rorqual.eval.task import Task
from rorqual.eval.textbits import TextTask

_SHOTS = ("dev", "train", "validation")
_ITEMS = ("test", "validation", "dev", "train")


@dataclass(frozen=True)
class Home:
    """A data set, its configuration and the split of the items; `rows` rewrites what a map of fields cannot."""

    name: str
    config: str | None = None
    split: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    rows: Callable[[Row], Row] | None = None


def _labelled(question: str) -> Callable[[Row], Row]:
    """Choices as {text, label} and the right one's label."""
    return lambda row: {"query": row[question], "choices": row["choices"]["text"], "gold": row["choices"]["label"].index(row["answerKey"])}


HOMES = MappingProxyType(
    {
        "arc_easy": Home("allenai/ai2_arc", "ARC-Easy", "test"),
        "arc_challenge": Home("allenai/ai2_arc", "ARC-Challenge", "test"),
        "boolq": Home("google/boolq", None, "validation"),
        "drop": Home("EleutherAI/drop", None, "validation"),
        "gsm8k": Home("openai/gsm8k", "main", "test"),
        "hellaswag": Home("Rowan/hellaswag", None, "validation"),
        "humaneval": Home("openai/openai_humaneval", None, "test"),
        "ifeval": Home("google/IFEval", None, "train"),
        "lambada": Home("EleutherAI/lambada_openai", "default", "test"),
        "math_500": Home("HuggingFaceH4/MATH-500", None, "test"),
        "mbpp": Home("google-research-datasets/mbpp", "full", "train+test+validation+prompt"),
        "mmlu": Home("cais/mmlu", "all", "test"),
        "mmlu_pro": Home("TIGER-Lab/MMLU-Pro", None, "test"),
        "nq": Home("google-research-datasets/nq_open", None, "validation"),
        "openbookqa": Home("allenai/openbookqa", "main", "test", rows=_labelled("question_stem")),
        "race_middle": Home("ehovy/race", "middle", "test"),
        "race_high": Home("ehovy/race", "high", "test"),
        "triviaqa": Home("mandarjoshi/trivia_qa", "rc.nocontext", "validation"),
        "winogrande": Home("allenai/winogrande", "winogrande_xl", "validation"),
    }
)
"""Where a task's rows lie on the hub, for those whose rows there have a form that the task takes."""


def is_hub(text: str) -> bool:
    """Whether a `--data` names a data set instead of a path."""
    return text == "hf" or text.startswith("hf:")


def parse(text: str) -> Home | None:
    """What stands behind "hf:"; None for "hf" alone. A folder's name may not hold a colon."""
    parts = text.split(":")[1:]
    if not parts or parts == [""]:
        return None
    if len(parts) > 3 or not parts[0]:
        raise ConfigError(f"--data ({text!r}) must be hf:NAME, hf:NAME:CONFIG or hf:NAME:CONFIG:SPLIT")
    name, config, split = (*parts, "", "")[:3]
    return Home(name, config or None, split)


def field_map(text: str) -> dict[str, str]:
    """ "question=problem,answer=solution" as a dictionary: the task's names, and those of the data set."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(mark and ours.strip() and theirs.strip() for ours, mark, theirs in pairs):
        raise ConfigError(f"--fields ({text!r}) must be OURS=THEIRS,OURS=THEIRS: the task's field, and the data set's")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def fetch(task: Task, data: str, fields: Mapping[str, str], folder: Path, shots: int | None = None) -> tuple[Task, str]:
    """The task over files that are written below `folder`, and the data set in words, with its fingerprint.

    ConfigError where no home is known; DataError where the hub cannot be reached or has no such data set, configuration, split or field.
    """
    given = parse(data)
    known = HOMES.get(task.name)
    if given is None and known is None:
        raise ConfigError(
            f"task {task.name} has no data set of its own on the hub here; name one: --data hf:NAME:CONFIG:SPLIT, or a folder"
        )
    home = given or known
    assert home is not None
    if known is not None and given is not None and given.name == known.name:
        home = replace(known, config=given.config or known.config, split=given.split or known.split)
    home = replace(home, fields={**home.fields, **fields})
    datasets = _library()
    names = _asked(home, lambda: list(datasets.get_dataset_split_names(home.name, home.config)))
    split = home.split or next((name for name in _ITEMS if name in names), names[0] if names else "train")
    rows, fingerprint = _rows(datasets, home, split)
    missing = [name for name in task.fields if rows and name not in rows[0]]
    if missing:
        raise DataError(
            f"data set {home.name} has no field {', '.join(map(repr, missing))}, which task {task.name} needs; it has {', '.join(map(str, rows[0]))}: "
            f"say what stands for it, --fields {','.join(f'{name}=THEIRS' for name in missing)}"
        )
    if not rows:
        raise DataError(f"split {split} of data set {home.name} has no rows; name another, hf:NAME:CONFIG:SPLIT")
    place = folder / task.name
    place.mkdir(parents=True, exist_ok=True)
    _write(place / "items.jsonl", rows)
    wanted = task.shots if shots is None else shots
    other = next((name for name in _SHOTS if name in names and name not in split.split("+")), None)
    if wanted and other is not None and task.examples is None and not isinstance(task, TextTask):
        some = other if task.group else f"{other}[:{wanted + 1}]"
        _write(place / "shots.jsonl", _rows(datasets, home, some)[0])
    made = replace(task, files=(f"{task.name}/items.jsonl",), shot_files=(f"{task.name}/shots.jsonl",))
    return made, ":".join(["hf", home.name, home.config or "", split]) + f"@{fingerprint}"


def _library() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("--data hf:NAME", "datasets", "eval") from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        raise ConfigError(f"datasets is {datasets.__version__}; 4 or newer is needed, since older ones run code that comes with a data set")
    return datasets


def _rows(datasets: Any, home: Home, split: str) -> tuple[list[Row], str]:
    found = _asked(home, lambda: datasets.load_dataset(home.name, home.config, split=split))
    return [_mapped(home, dict(row)) for row in found], str(getattr(found, "_fingerprint", ""))


def _asked(home: Home, ask: Callable[[], Any]) -> Any:
    what = f"data set {home.name}" + (f" ({home.config})" if home.config else "")
    try:
        return ask()
    except FileNotFoundError as error:
        if Path(home.name).is_dir():
            raise DataError(
                f"folder {home.name} has no data files for `datasets` (Parquet, JSON, JSON lines, CSV): {_short(error)}"
            ) from None
        raise DataError(f"{what} is not on the hub, nor a folder here ({_short(error)}); correct its name, or give a folder with --data PATH") from None  # fmt: skip
    except OSError as error:  # datasets' ConnectionError, its offline mode, HTTP errors
        raise DataError(
            f"{what} could not be fetched: no answer from the Hugging Face hub ({_short(error)}). Without a network give the files with --data PATH "
            "(`rorqual eval --list` shows which), or fetch once where there is one and set HF_HOME to that cache"
        ) from None
    except Exception as error:  # unknown configuration or split; a script instead of data; files that are broken or do not fit together
        if not isinstance(error, (ValueError, RuntimeError)) and not type(error).__module__.startswith("datasets."):
            raise
        raise DataError(f"{what} cannot be read: {_short(error)}") from None


def _short(error: BaseException) -> str:
    """What it says, and what it came from."""
    said = " ".join(str(error).split())[:300] or type(error).__name__
    while error.__cause__ is not None:
        error = error.__cause__
        first = " ".join(str(error).split())[:200]
        if first and first not in said:
            said = f"{said.rstrip('.')}: {first}"
    return said


def _mapped(home: Home, row: Row) -> Row:
    if home.rows is not None:
        row = {**row, **home.rows(row)}
    out = dict(row)
    for ours, theirs in home.fields.items():
        value: Any = row
        for part in theirs.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise DataError(f"data set {home.name} has no field {theirs!r} (for {ours!r}); it has {', '.join(map(str, row))}")
            value = value[part]
        out[ours] = value
    return out


def _write(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
