"""`rorqual inspect` on the scaled-down folder of every member, as released."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rorqual.cli.inspect import main
from tests.checkpoint import members


def inspect(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, Any]:
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", members.NAMES)
def test_released_folders_fit(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    code, report = inspect(capsys, members.write(tmp_path, name))
    folder = report["folder"]
    assert code == 0 and (folder["missing"], folder["extra"], folder["different"], folder["notices"]) == ([], [], [], [])
    assert (folder["files"], folder["tensors"], folder["bytes"]) == (3, report["tensors"], report["bytes"])
    assert ("F8_E4M3" in folder["dtypes"]) == (name in members.IN_FP8) == report["layout"].startswith("FP8")
    raw = members.config_json(name)
    cache = raw["num_hidden_layers"] * (raw["kv_lora_rank"] + raw["qk_rope_head_dim"])
    assert report["cache_bytes_per_token"] == {"bf16": 2 * cache, "fp32": 4 * cache}
    assert report["shape"]["vocab_size"] == raw["vocab_size"] and "unverified" not in report


def test_smaller_scales_are_counted_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, report = inspect(capsys, members.write(tmp_path, "v3_1", scales="e8m0"))
    scales = report["folder"]["dtypes"]["F8_E8M0"]
    assert code == 0 and scales == report["folder"]["dtypes"]["F8_E4M3"]
    assert report["folder"]["bytes"] < report["bytes"] and report["folder"]["different"] == []
