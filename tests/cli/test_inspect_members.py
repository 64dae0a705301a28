"""`rorqual inspect` on the scaled-down folder of every member, as released, and beside the reader on folders with one fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rorqual.cli import inspect as verb
from rorqual.errors import CheckpointError
from rorqual.presets import FP8_QUANTIZATION
from tests.checkpoint import members
from tests.cli.test_inspect import Layout, inspect, layout_of, save
from tests.tiny import t0

LICENCES = {
    "v3_671b": "DeepSeek Model Licence v1.0", "v2_236b": "DeepSeek Model Licence v1.0", "v2_lite_16b": "DeepSeek Model Licence v1.0", "r1": "MIT",
    "v3_0324": "MIT", "v3_1": "MIT", "moonlight_16b": "mit",
}  # fmt: skip


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
    if name in LICENCES:
        assert report["licence"] == LICENCES[name]
    assert report["shape"]["vocab_size"] == raw["vocab_size"] and "unverified" not in report


def test_a_modified_licence_is_not_the_licence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert inspect(capsys, members.write(tmp_path, "kimi_k2"))[1]["licence"] not in ("MIT", "mit")


def test_smaller_scales_are_counted_as_they_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, report = inspect(capsys, members.write(tmp_path, "v3_1", scales="e8m0"))
    scales = report["folder"]["dtypes"]["F8_E8M0"]
    assert code == 0 and scales == report["folder"]["dtypes"]["F8_E4M3"]
    assert report["folder"]["bytes"] < report["bytes"] and report["folder"]["different"] == []


FAULTS: dict[str, Callable[[Layout, str], Any]] = {
    "none": lambda layout, name: None,
    "removed": lambda layout, name: layout.pop(name),
    "renamed": lambda layout, name: layout.update({f"{name}x": layout.pop(name)}),
    "reshaped": lambda layout, name: layout.update({name: (layout[name][0], (*layout[name][1], 1))}),
    "in BF16": lambda layout, name: layout.update({name: ("BF16", layout[name][1])}),
    "in FP8": lambda layout, name: layout.update({name: ("F8_E4M3", layout[name][1])}),
    "in I32": lambda layout, name: layout.update({name: ("I32", layout[name][1])}),
    "without scales": lambda layout, name: layout.pop(f"{name}_scale_inv", None),
    "with scales": lambda layout, name: layout.update({f"{name}_scale_inv": ("F32", (1, 1))}),
}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    quantised=st.booleans(), fault=st.sampled_from(sorted(FAULTS)), data=st.data(), changes=st.sampled_from([{}, {"q_lora_rank": None, "tie_word_embeddings": True}])
)  # fmt: skip
def test_inspect_and_the_reader_agree(capsys: pytest.CaptureFixture[str], tmp_path: Path, quantised: bool, fault: str, data: st.DataObject, changes: dict[str, Any]) -> None:  # fmt: skip
    """Exit code 1 exactly where the reader refuses the folder; of an MTP module's copies of embedding and head it uses none."""
    from rorqual.checkpoint.source import FolderSource

    config = t0(num_hidden_layers=2, quantization_config=FP8_QUANTIZATION if quantised else None, **changes)
    layout = layout_of(config)
    name = data.draw(st.sampled_from([one for one in layout if not one.startswith("model.layers.2.") or "proj" in one or "norm" in one]))
    FAULTS[fault](layout, name)
    save(tmp_path, layout, config.to_hf())
    code, report = inspect(capsys, tmp_path)
    try:
        FolderSource(tmp_path).close()
        refused = ""
    except CheckpointError as error:
        refused = str(error)
    assert code == bool(refused), (fault, name, refused, report["folder"])


def test_verify_reads_every_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = members.write(tmp_path / "v3", "v3_671b")
    assert verb.main([str(folder), "--verify"]) == 0
    assert "every value is a number" in capsys.readouterr().out
    for file in folder.glob("*.safetensors"):
        table = safetensors.torch.load_file(file)
        if "model.norm.weight" in table:
            table["model.norm.weight"][0] = float("nan")
            safetensors.torch.save_file(table, file)
    assert verb.main([str(folder), "--verify"]) == 1
    assert "model.norm.weight (1 values)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        verb.main(["--preset", "v3_671b", "--verify"])
