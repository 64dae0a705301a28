"""`rorqual export`: a run by its own export or a checkpoint, any folder of the family, and clear refusals."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf, resume
from rorqual.cli import export
from rorqual.errors import CheckpointError, RorqualError
from rorqual.recipes.laptop import laptop
from tests.checkpoint import members
from tests.checkpoint.folders import build, same, table
from tests.tiny import t0

CONFIG = t0(vocab_size=4096, max_position_embeddings=1024)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 1 and 2, whose averages are another model's weights."""
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(dataclasses.replace(laptop(), model=CONFIG).to_json())
    for step in (1, 2):
        model, average = build(CONFIG, seed=step), build(CONFIG, seed=10 + step)
        tensors = resume.logical_tensors(model)
        tensors |= resume.split_experts({f"ema.{name}": value.detach() for name, value in average.named_parameters()})
        resume.save(resume.step_folder(folder / "checkpoints", step), tensors, {"step": step})
    return folder


def test_a_model_folder_is_read_checked_and_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build(t0())
    source = hf.export(model, None, tmp_path / "hf")
    assert export.main([str(source), str(tmp_path / "out"), "--shard-size", "0.0002"]) == 0
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    assert same(hf.load(tmp_path / "out")[0], model)
    printed = capsys.readouterr()
    assert re.search(r"safetensors files, 1\.\d MB, dtypes kept", printed.out) and "no tokenizer files found" in printed.err
    assert export.main([str(source), str(tmp_path / "out"), "--dtype", "bf16", "--overwrite"]) == 0
    assert table(tmp_path / "out")["model.norm.weight"].dtype == torch.bfloat16


def test_a_run_gives_its_newest_checkpoint_or_the_step_asked_for(run: Path, tmp_path: Path) -> None:
    export.main([str(run), str(tmp_path / "newest")])
    export.main([str(run), str(tmp_path / "first"), "--step", "1"])
    assert same(hf.load(tmp_path / "newest")[0], build(CONFIG, seed=2))
    assert same(hf.load(tmp_path / "first")[0], build(CONFIG, seed=1))
    assert (tmp_path / "first" / "tokenizer.json").read_text() == "{}"


def test_a_run_gives_its_moving_average_when_asked(run: Path, tmp_path: Path) -> None:
    export.main([str(run), str(tmp_path / "out"), "--ema"])
    want = build(CONFIG, seed=12)
    for (_, mine), (_, current) in zip(want.router_biases(), build(CONFIG, seed=2).router_biases(), strict=True):
        mine.copy_(current)
    assert same(hf.load(tmp_path / "out")[0], want)


def test_a_finished_run_gives_what_it_exported_itself(run: Path, tmp_path: Path) -> None:
    final = build(CONFIG, seed=3)
    hf.export(final, run / "tokenizer", run / "hf")
    export.main([str(run), str(tmp_path / "out")])
    assert same(hf.load(tmp_path / "out")[0], final)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]


def test_what_cannot_be_exported_is_refused(run: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    source = str(hf.export(build(t0()), None, tmp_path / "hf"))
    for arguments, message in (
        ([str(tmp_path / "none"), out], "is not a folder"),
        ([str(tmp_path / "empty"), out], "has no config.json, so it is neither a run nor a model folder"),
        ([source, source], "holds the source"),
        ([source, str(tmp_path), "--overwrite"], "holds the source"),
        ([source, out, "--step", "1"], "has no checkpoints, so --step and --ema do not apply"),
        ([source, str(run)], "exists and is not empty"),
        ([source, out, "--tokenizer", str(tmp_path / "empty")], "holds no tokenizer"),
        ([str(run), out, "--step", "7"], "has no checkpoint of step 7; there are: 1, 2"),
    ):
        with pytest.raises(RorqualError, match=message):
            export.main(arguments)
    resume.prune(run / "checkpoints", 1)
    (resume.step_folder(run / "checkpoints", 2) / "index.json").unlink()
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        export.main([str(run), out])
    assert not Path(out).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a"],
        ["a", "b", "--dtype", "int4"],
        ["a", "b", "--check", "llamacpp"],
        ["a", "b", "--to", "gguf", "--check", "hf"],
        ["a", "b", "--shard-size", "0"],
    ],
)
def test_wrong_usage_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        export.main(arguments)
    assert caught.value.code == 2 and "usage: rorqual export" in capsys.readouterr().err


def test_members_are_converted_with_their_terms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = members.write(tmp_path / "v3", "v3_671b")
    (source / "LICENSE-MODEL").write_text("DEEPSEEK LICENSE AGREEMENT\nVersion 1.0")
    out = tmp_path / "bf16"
    assert export.main([str(source), str(out), "--to", "bf16", "--mtp", "drop", "--layers", "2:5"]) == 0
    assert (out / "LICENSE-MODEL").read_bytes() == (source / "LICENSE-MODEL").read_bytes()
    assert "military use" in (out / "README.md").read_text() and not (out / "configuration_deepseek.py").exists()
    model, report = hf.load(out)
    assert (report.config.num_hidden_layers, report.config.num_nextn_predict_layers, report.config.first_k_dense_replace) == (3, 0, 1)
    assert "bf16" in capsys.readouterr().out
    assert export.main([str(out), str(tmp_path / "fp8"), "--to", "fp8"]) == 0
    assert table(tmp_path / "fp8")["model.layers.0.self_attn.o_proj.weight"].dtype == torch.float8_e4m3fn
    for wrong in ("4", "a:b", "1:", "-1:2"):
        with pytest.raises(CheckpointError, match="--layers"):
            export.main([str(source), str(tmp_path / "no"), f"--layers={wrong}"])
    with pytest.raises(CheckpointError, match="range inside 0:5"):
        export.main([str(source), str(tmp_path / "no"), "--layers", "3:9"])


@pytest.mark.peer
def test_the_check_against_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = members.write(tmp_path / "v3", "v3_671b")
    assert export.main([str(source), str(tmp_path / "out"), "--to", "bf16", "--check", "hf"]) == 0
    assert "check: logits within" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="needs plain weights"):
        export.main([str(source), str(tmp_path / "fp8"), "--check", "hf"])
