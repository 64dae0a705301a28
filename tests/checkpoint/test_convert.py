"""Conversion: every dtype to every other with the right bits, everything carried over, killed and resumed, in bounded memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import convert as converting
from rorqual.checkpoint import folder as folders
from rorqual.checkpoint import hf
from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.names import SCALE, quantised
from rorqual.checkpoint.source import FolderSource
from rorqual.errors import CheckpointError
from tests.checkpoint import members
from tests.checkpoint.folders import table


def run(folder: Path, out: Path, **options) -> Path:  # type: ignore[no-untyped-def]
    with FolderSource(folder, mtp=options.pop("mtp", True), layers=options.pop("layers", None)) as source:
        return convert(source, folder, out, **options)


@pytest.mark.parametrize("name", members.NAMES)
def test_a_folder_written_again_has_the_same_bits(tmp_path: Path, name: str) -> None:
    """Every member, plain and in FP8 as released: names, dtypes, codes, scales, copies; config.json keeps every field."""
    folder = members.write(tmp_path / "in", name)
    out = run(folder, tmp_path / "out", shard_size=300_000)
    first, second = table(folder), table(out)
    assert list(sorted(first)) == list(sorted(second))
    for key, value in first.items():
        assert value.dtype == second[key].dtype and torch.equal(
            value.contiguous().view(torch.uint8), second[key].contiguous().view(torch.uint8)
        ), key
    before, after = (json.loads((one / "config.json").read_text()) for one in (folder, out))
    changed = {key for key in before if key != "auto_map" and before[key] != after.get(key)}
    assert changed <= {"rope_scaling"} and "auto_map" not in after and after["topk_method"] and after["scoring_func"]
    assert not changed or {**after["rope_scaling"], **before["rope_scaling"]} == after["rope_scaling"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(one.numel() * one.element_size() for one in second.values())
    kept = {path.name for path in folder.iterdir() if path.name in converting.TOKENIZER_FILES}
    assert kept and all((out / one).read_bytes() == (folder / one).read_bytes() for one in kept)


@pytest.mark.parametrize("name", ["v3_671b", "v3_1", "kimi_k2"])
def test_fp8_becomes_its_bf16_twin_and_loses_the_field(tmp_path: Path, name: str) -> None:
    """Field case F09, row w: no quantization_config, no scale in files or index."""
    twin = table(members.write(tmp_path / "twin", name, weights="bf16"))
    out = run(members.write(tmp_path / "in", name), tmp_path / "out", to="bf16", shard_size=200_000)
    got = table(out)
    assert got.keys() == twin.keys() and all(torch.equal(got[key], value) and got[key].dtype == value.dtype for key, value in twin.items())
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert not any(key.endswith(SCALE) for key in json.loads((out / "model.safetensors.index.json").read_text())["weight_map"])
    wide = table(run(tmp_path / "in", tmp_path / "wide", to="fp32"))
    assert all(value.dtype == torch.float32 and torch.equal(value, twin[key].float()) for key, value in wide.items())


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_quantise_export_import_within_half_a_step(tmp_path: Path, scale_fmt: str | None) -> None:
    """E4M3 has three bits of fraction: half a step is 1/16 of the value, or half the smallest subnormal times the scale."""
    folder = members.write(tmp_path / "in", "v3_671b", weights="bf16")
    if scale_fmt:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": {**members.FP8, "scale_fmt": scale_fmt}}))
    model, _ = hf.load(folder)
    out = run(folder, tmp_path / "out", to="fp8", shard_size=500_000)
    back, report = hf.load(out)
    files = table(out)
    assert report.missing == [] and json.loads((out / "config.json").read_text())["quantization_config"]["weight_block_size"] == [128, 128]
    for key, value in table(folder).items():
        if not quantised(key):
            assert torch.equal(files[key], value), key
            continue
        scale = files[key + SCALE]
        assert files[key].dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
        each = scale.repeat_interleave(128, 0)[: value.shape[0]].repeat_interleave(128, 1)[:, : value.shape[1]]
        error = (files[key].float() * each - value.float()).abs()
        assert (error <= torch.maximum(value.float().abs() / 16, each * 2.0**-10) * 1.0001).all(), key
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in model.parameters())


def test_mtp_dropped_and_layers_cut(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "in", "v3_671b")
    out = run(folder, tmp_path / "plain", mtp=False)
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert not any(key.startswith("model.layers.5.") for key in table(out))
    cut = run(folder, tmp_path / "cut", layers=(2, 4), to="bf16")
    raw = json.loads((cut / "config.json").read_text())
    assert (raw["num_hidden_layers"], raw["first_k_dense_replace"], raw["num_nextn_predict_layers"]) == (2, 1, 0)
    twin = table(members.write(tmp_path / "twin", "v3_671b", weights="bf16"))
    assert torch.equal(table(cut)["model.layers.1.mlp.experts.3.up_proj.weight"], twin["model.layers.3.mlp.experts.3.up_proj.weight"])


def test_small_blocks_give_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = members.write(tmp_path / "in", "v3_671b")
    whole = {to: table(run(folder, tmp_path / f"a{to}", to=to)) for to in ("bf16", "fp8", "fp32")}
    blocks = converting.row_blocks
    monkeypatch.setattr(converting, "row_blocks", lambda shape, size, multiple=128: blocks(shape, size, 20_000, multiple))
    for to, first in whole.items():
        second = table(run(folder, tmp_path / f"b{to}", to=to))
        assert all(
            torch.equal(one.contiguous().view(torch.uint8), second[key].contiguous().view(torch.uint8)) for key, one in first.items()
        )
    plain = members.write(tmp_path / "plain", "v3_671b", weights="bf16")
    small = table(run(plain, tmp_path / "c", to="fp8"))
    monkeypatch.setattr(converting, "row_blocks", blocks)
    large = table(run(plain, tmp_path / "d", to="fp8"))
    assert all(torch.equal(one.contiguous().view(torch.uint8), small[key].contiguous().view(torch.uint8)) for key, one in large.items())


def test_a_stopped_conversion_goes_on_behind_its_last_whole_shard(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "in", "v3_671b")
    want = table(run(folder, tmp_path / "straight", to="bf16", shard_size=200_000))

    def stop_at(share: float):  # type: ignore[no-untyped-def]
        def progress(done: int, total: int, name: str) -> None:
            if total and done >= share * total:
                raise KeyboardInterrupt

        return progress

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(folder, out, to="bf16", shard_size=200_000, progress=stop_at(0.5))
    partial = folders.temporary(out)
    assert not out.exists() and (partial / converting.JOURNAL).exists()
    first = sorted(partial.glob("*.safetensors"))[0]
    stamp = first.stat().st_mtime_ns
    run(folder, out, to="bf16", shard_size=200_000)
    assert (out / first.name).stat().st_mtime_ns == stamp and not partial.exists() and not (out / converting.JOURNAL).exists()
    got = table(out)
    assert got.keys() == want.keys() and all(torch.equal(got[key], value) for key, value in want.items())
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "other", to="bf16", shard_size=200_000, progress=stop_at(0.5))
    run(folder, tmp_path / "other", to="fp32", shard_size=200_000)  # another request starts afresh
    assert all(value.dtype == torch.float32 for value in table(tmp_path / "other").values())


def test_a_killed_conversion_leaves_no_folder_that_looks_whole(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "in", "v3_671b")
    code = (
        "import sys, time; from rorqual.checkpoint.source import FolderSource; from rorqual.checkpoint.convert import convert\n"
        "slow = lambda done, total, name: time.sleep(0.02)\n"
        f"convert(FolderSource({str(folder)!r}), None, {str(tmp_path / 'out')!r}, to='bf16', shard_size=100_000, progress=slow)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"})
    partial = folders.temporary(tmp_path / "out")
    try:
        for _ in range(600):
            if len(list(partial.glob("*.safetensors"))) > 2:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (tmp_path / "out").exists() and partial.exists()
    with pytest.raises(Exception, match="config.json"):
        FolderSource(partial)
    run(folder, tmp_path / "out", to="bf16", shard_size=100_000)
    assert hf.load(tmp_path / "out")[1].missing == []


def test_a_resumed_conversion_mixes_no_other_layers_in(tmp_path: Path) -> None:
    """Layers 1 and 2 have the same new names, shapes and sizes; what a killed conversion of one left is not taken for the other."""
    folder, out = members.write(tmp_path / "in", "moonlight_16b"), tmp_path / "out"

    class Killed(BaseException):
        pass

    def stop(done: int, total: int, name: str) -> None:
        if done > total // 2:
            raise Killed

    with pytest.raises(Killed):
        run(folder, out, layers=(1, 2), shard_size=100_000, progress=stop)
    assert len(list(folders.temporary(out).glob("*.safetensors"))) > 1
    run(folder, out, layers=(2, 3), shard_size=100_000)
    stored, written = table(folder), table(out)
    moved = [name for name in written if name.startswith("model.layers.0.")]
    assert moved and all(torch.equal(written[name], stored[name.replace("layers.0.", "layers.2.")]) for name in moved)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = members.write(tmp_path / "in", "moonlight_16b")
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000})())
    with pytest.raises(CheckpointError, match="are needed"):
        run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_requests_are_refused(tmp_path: Path) -> None:
    folder = members.write(tmp_path / "in", "moonlight_16b")
    for options, words in (({"to": "int4"}, "must be one of 'fp32', 'bf16', 'fp8'"), ({"shard_size": 0}, "shard_size")):
        with pytest.raises(CheckpointError, match=words):
            run(folder, tmp_path / "out", **options)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        run(folder, tmp_path / "out")
    run(folder, tmp_path / "out", replace=True)
    assert not (tmp_path / "out" / "kept").exists()


@pytest.mark.slow
def test_a_tensor_of_four_gigabytes_is_converted_in_under_one(tmp_path: Path) -> None:
    """Anonymous memory of the process stays under 1 GB while a 4 GB FP8 tensor becomes 8 GB of BF16."""
    raw = members.config_json("v2_lite_16b", vocab_size=300, hidden_size=128, intermediate_size=32_000_000, num_hidden_layers=1, first_k_dense_replace=1,
                              n_routed_experts=0, bos_token_id=0, eos_token_id=1, quantization_config=members.FP8)  # fmt: skip
    folder = tmp_path / "big"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    from rorqual.config import ModelConfig
    from rorqual.planner.inventory import inventory

    layout = inventory(ModelConfig.from_file(folder))
    header, end = {}, 0
    for one in layout:
        header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [end, end + one.bytes]}
        end += one.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)  # zeros, sparse
    code = (
        "import sys, threading, time, re\n"
        "from rorqual.checkpoint.source import FolderSource; from rorqual.checkpoint.convert import convert\n"
        "peak = [0]\n"
        "def watch():\n"
        "    while True:\n"
        "        kb = int(re.search(r'RssAnon:\\s+(\\d+)', open('/proc/self/status').read())[1]); peak[0] = max(peak[0], kb); time.sleep(0.01)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        f"convert(FolderSource({str(folder)!r}), None, {str(tmp_path / 'out')!r}, to='bf16')\n"
        "print(peak[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1_000_000_000
    with FolderSource(tmp_path / "out") as written:
        assert written.dtype("model.layers.0.mlp.gate_proj.weight") == "BF16"
