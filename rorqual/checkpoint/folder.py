"""A folder that appears whole or not at all: written under a temporary name, synced, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rorqual.errors import CheckpointError


def temporary(final: Path) -> Path:
    """The name under which `final` is written: hidden, in the same parent, so that a rename is enough.

    It is the same for every process, so that several ranks meet in one folder, and a folder left by a killed writer is
    found and replaced by the next one.
    """
    return final.with_name(f".{final.name}.partial")


def start(final: Path, replace: bool = False) -> Path:
    """Makes the empty temporary folder for `final`; CheckpointError when `final` exists and may not be replaced."""
    if final.exists() and not final.is_dir():
        raise CheckpointError(f"{final} exists and is not a folder; choose another name")
    if final.exists() and not replace and any(final.iterdir()):
        raise CheckpointError(f"{final} exists and is not empty; choose another name, delete it, or ask for it to be replaced")
    partial = temporary(final)
    with explained(final):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    return partial


def finish(final: Path) -> None:
    """Syncs the temporary folder of `final` and renames it into place; a folder of that name is deleted afterwards.

    Between the two renames that replace a folder, a kill leaves the old one as `.NAME.replaced`.
    """
    partial, replaced = temporary(final), final.with_name(f".{final.name}.replaced")
    with explained(final):
        for path in partial.iterdir():
            sync(path)
        sync(partial)
        if final.exists():
            if replaced.exists():
                shutil.rmtree(replaced)
            final.rename(replaced)
        partial.rename(final)
        sync(final.parent)
        if replaced.exists():
            shutil.rmtree(replaced)


def abandon(final: Path) -> None:
    """Deletes the temporary folder of `final`, which frees the space that a failed write took."""
    shutil.rmtree(temporary(final), ignore_errors=True)


@contextmanager
def new_folder(final: Path, replace: bool = False) -> Iterator[Path]:
    """Yields an empty folder to write into; it takes the name `final` when the block ends, and vanishes when the block raises."""
    partial = start(final, replace)
    try:
        with explained(final):
            yield partial
        finish(final)
    except BaseException:
        abandon(final)
        raise


@contextmanager
def explained(final: Path) -> Iterator[None]:
    """Turns an operating-system error while writing `final` into a CheckpointError that says what is safe."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"could not write {final}: {error.strerror or error}; nothing of that name was changed and earlier checkpoints are intact; free space or choose another disk, then try again"
        ) from error


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuses a write of `num_bytes` that the file system of `folder` has no room for."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise CheckpointError(
            f"{folder.parent} has {free / 1e9:.3g} GB free, {num_bytes / 1e9:.3g} GB are needed; earlier checkpoints are intact; free space or choose another disk, then try again"
        )


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with one top-level entry a line, synced with its folder by `finish`."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
