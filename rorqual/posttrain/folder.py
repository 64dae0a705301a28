"""The folder of a post-training run: config.json  lineage.json  metrics.jsonl  samples/  checkpoints/  tokenizer/  adapter/  hf/  lock

Its `hf`, or `adapter` over the base model, is what generate, chat, serve, eval and export take. It is held, never overwritten
without being asked and resumed as a pre-training run is (train.rundir).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rorqual.errors import CheckpointError, ConfigError, RunError
from rorqual.train.records import changes, from_plain, to_plain
from rorqual.train.rundir import CONTENTS, RunFolder, write_atomic

T = TypeVar("T")

OWN = (*CONTENTS, "samples", "tokenizer", "adapter")


class TuningFolder(RunFolder):
    """A post-training run held by this process; use it as a context."""

    adapter = property(lambda self: self.path / "adapter")
    hf = property(lambda self: self.path / "hf")
    samples = property(lambda self: self.path / "samples")
    tokenizer = property(lambda self: self.path / "tokenizer")

    def __enter__(self) -> TuningFolder:
        super().__enter__()
        return self

    def holds_run(self) -> bool:
        """Whether work of a run is here; one that was refused for its data left only what it was asked for."""
        return any((self.path / name).exists() for name in OWN if name not in ("config.json", "lineage.json"))

    def open(self, config: Any, lineage: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Begins a new run, or checks that the one to be resumed has the same configuration."""
        if resume:
            changed = changes(read_tuning(self.path, type(config)), config)
            if changed:
                listed = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
                raise ConfigError(
                    f"cannot resume {self.path} with a changed configuration: {listed}; resume without the change, or choose another --out"
                )
            return
        self.check_replaceable(overwrite)
        if self.holds_run():
            for name in OWN:
                target = self.path / name
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        write_atomic(self.lineage, json.dumps(lineage, indent=2) + "\n")
        write_atomic(self.config, json.dumps(to_plain(config), indent=2, ensure_ascii=False) + "\n")


def adapter_base(path: str | Path) -> Path | None:
    """The base model's folder of a run whose result is an adapter; None for any other folder. RunError for a run that has no result yet."""
    path = Path(path)
    if (path / "hf" / "config.json").is_file() or not (path / "lineage.json").is_file():
        return None
    try:
        story = json.loads((path / "lineage.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {path / 'lineage.json'}: {error}; restore it") from error
    if not isinstance(story, dict) or "kind" not in story:
        return None
    if not (path / "adapter").is_dir():
        raise RunError(
            f"{path} is a run of {story['kind']} that has not finished; go on with: rorqual {story['kind']} --out {path} --resume"
        )
    return Path(story["base"])


def check_same_start(checkpoint: Path, stored: Mapping[str, Any], fingerprints: Mapping[str, str]) -> None:
    """CheckpointError where a checkpoint's state names other data or another base model than is given."""
    for name, value in fingerprints.items():
        if stored.get(name) != value:
            raise CheckpointError(
                f"{checkpoint} was trained with {name} {stored.get(name)}, given is {value}; give what the run began with, or choose another --out"
            )


def read_tuning(path: str | Path, cls: type[T]) -> T:
    """The configuration of a post-training run; RunError where the folder holds none, or one of another kind."""
    file = Path(path) / "config.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} holds no run to resume: it has no config.json; start one without --resume") from None
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read {file}: {error}") from error
    kind = getattr(cls, "kind", None)
    if not isinstance(raw, dict) or raw.get("kind") != kind:
        raise RunError(f"{path} is no run of kind {kind!r}; choose another --out")
    return from_plain(cls, raw)
