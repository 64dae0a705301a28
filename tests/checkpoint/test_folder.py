"""Folders that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from rorqual.checkpoint import folder
from rorqual.errors import CheckpointError


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    final = tmp_path / "a" / "out"
    with folder.new_folder(final) as partial:
        (partial / "x").write_text("1")
        assert not final.exists() and partial.parent == final.parent
    assert (final / "x").read_text() == "1"
    assert [path.name for path in final.parent.iterdir()] == ["out"]


def test_nothing_is_left_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder.new_folder(tmp_path / "out") as partial:
        (partial / "x").write_text("1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_asked(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    (final / "old").write_text("1")
    with pytest.raises(CheckpointError, match="exists and is not empty"), folder.new_folder(final):
        pass
    assert (final / "old").exists()
    with pytest.raises(ValueError), folder.new_folder(final, replace=True):
        raise ValueError
    assert (final / "old").exists()  # a failed replacement replaces nothing
    with folder.new_folder(final, replace=True) as partial:
        (partial / "new").write_text("2")
    assert [path.name for path in final.iterdir()] == ["new"] and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_may_be_filled_and_a_file_may_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with folder.new_folder(tmp_path / "empty") as partial:
        (partial / "x").write_text("1")
    assert (tmp_path / "empty" / "x").exists()
    (tmp_path / "file").write_text("1")
    with pytest.raises(CheckpointError, match="is not a folder"), folder.new_folder(tmp_path / "file", replace=True):
        pass


def test_what_a_killed_writer_left_is_replaced(tmp_path: Path) -> None:
    partial = folder.start(tmp_path / "out")
    (partial / "half").write_text("1")
    with folder.new_folder(tmp_path / "out") as again:
        assert again == partial and not (again / "half").exists()


def test_system_errors_say_what_is_safe(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not write .*out: No space left on device; .*earlier checkpoints are intact"):
        with folder.new_folder(tmp_path / "out"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    blocked = tmp_path / "file"
    blocked.write_text("1")
    with pytest.raises(CheckpointError, match="could not write"), folder.new_folder(blocked / "out"):
        pass


def test_too_little_space_is_refused_beforehand(tmp_path: Path) -> None:
    folder.require_space(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"GB free, 1e\+09 GB are needed"):
        folder.require_space(tmp_path, 10**18)


def test_json_round_trip(tmp_path: Path) -> None:
    folder.write_json(tmp_path / "x.json", {"a": [1, 2.5, "ü"]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": [1, 2.5, "ü"]}
