"""New phases: weights, what may change, lineage over generations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.config import RopeScaling
from rorqual.errors import CheckpointError, ConfigError
from rorqual.model.transformer import CausalLM
from rorqual.train import extend
from rorqual.train.hyperparams import BatchSchedule, RunConfig
from rorqual.train.trainer import train
from tests.train.tiny_run import TinyData, tiny_run

YARN = RopeScaling(factor=2.0, original_max_position_embeddings=64, mscale_all_dim=1.0)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("parent") / "run"
    train(tiny_run(3), out, data=TinyData(), progress=False, ceiling_gflops=50.0)
    return out


def phase(steps: int = 2) -> RunConfig:
    """Twice the sequence length, other scaling, batch and schedules."""
    return tiny_run(
        steps, model={"rope_scaling": YARN, "max_position_embeddings": 512}, sequence_length=32, batch=BatchSchedule.constant(2)
    )


def go(run: RunConfig, out: Path, **kwargs: Any) -> Any:
    return train(run, out, data=TinyData(run.train.sequence_length), progress=False, ceiling_gflops=50.0, **kwargs)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return extend.open_parent(run).load()


def test_phase_starts_from_the_parent_s_weights_and_biases(parent: Path, tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    first = weights(parent)
    go(phase(), tmp_path / "long", init=parent, on_step=lambda state, *_: seen.append({n: t.clone() for n, t in state.weights().items()}))
    assert any(name.endswith("e_score_correction_bias") and t.abs().max() > 0 for name, t in first.items())
    # the first step's learning rate is 0 (warm-up), so its weights are still the parent's, to the bit
    assert all(torch.equal(seen[0][name], t) for name, t in first.items() if not name.endswith("bias"))
    assert not torch.equal(seen[1]["lm_head.weight"], first["lm_head.weight"])
    story = json.loads((tmp_path / "long" / "lineage.json").read_text())
    (entry,) = story["parents"]
    assert (entry["path"], entry["kind"], entry["weights"], entry["step"], entry["tokens"]) == (str(parent), "run", "raw", 3, 192)
    assert entry["changes"]["train.sequence_length"] == [16, 32] and entry["changes"]["model.rope_scaling.factor"] == [4.0, 2.0]
    go(tiny_run(1, model={"rope_scaling": YARN, "max_position_embeddings": 512}), tmp_path / "third", init=tmp_path / "long")
    third = json.loads((tmp_path / "third" / "lineage.json").read_text())
    assert [p["path"] for p in third["parents"]] == [str(parent), str(tmp_path / "long")]


def test_interrupted_phase_resumes_from_itself(parent: Path, tmp_path: Path) -> None:
    """Killed before its first step: the weights it started from are in its own folder."""

    def crash(*_: Any) -> None:
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        go(phase(), tmp_path / "long", init=parent, on_step=crash)
    go(phase(), tmp_path / "long", resume_run=True)
    go(phase(), tmp_path / "straight", init=parent)
    a, b = weights(tmp_path / "long"), weights(tmp_path / "straight")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_not_replaced_by_the_phase_that_starts_from_it(tmp_path: Path) -> None:
    """--init RUN --out RUN --overwrite would delete the weights before they are read; so would --init RUN/hf."""
    run = tmp_path / "run"
    go(tiny_run(1), run)
    model = CausalLM(tiny_run().model)
    model.init_weights(0)
    hf.export(model, None, run / "hf")
    kept = sorted(path.name for path in run.rglob("*"))
    (tmp_path / "link").symlink_to(run)
    for parent in (run, run / "hf", tmp_path / "link"):
        with pytest.raises(ConfigError, match="--overwrite would delete it first"):
            go(tiny_run(1), run, init=parent, overwrite=True)
    assert sorted(path.name for path in run.rglob("*")) == kept
    hf.export(model, None, run / "kept")
    go(tiny_run(1), run, init=run / "kept", overwrite=True)


def test_moving_average_as_the_start(parent: Path, tmp_path: Path) -> None:
    raw, average = weights(parent), extend.open_parent(parent, "ema").load()
    assert not torch.equal(raw["lm_head.weight"], average["lm_head.weight"])
    go(phase(1), tmp_path / "long", init=parent, init_weights="ema")
    assert torch.equal(weights(tmp_path / "long")["lm_head.weight"], average["lm_head.weight"])
    assert json.loads((tmp_path / "long" / "lineage.json").read_text())["parents"][0]["weights"] == "ema"


def test_hugging_face_folder_as_the_start(parent: Path, tmp_path: Path) -> None:
    model = CausalLM(tiny_run().model)
    model.load_state_dict(weights(parent))
    hf.export(model, None, tmp_path / "hf")
    run = extend.derive(tmp_path / "hf", tiny_run(1, model={"hidden_size": 64}))
    assert run.model.hidden_size == 32  # the folder lends its model to the recipe
    go(run, tmp_path / "next", init=tmp_path / "hf")
    assert torch.equal(weights(tmp_path / "next")["lm_head.weight"], weights(parent)["lm_head.weight"])
    assert json.loads((tmp_path / "next" / "lineage.json").read_text())["parents"][0]["kind"] == "huggingface"
    with pytest.raises(ConfigError, match="name a recipe"):
        extend.derive(tmp_path / "hf", None)
    with pytest.raises(ConfigError, match="no moving average"):
        extend.open_parent(tmp_path / "hf", "ema")


def test_derive_from_a_run(parent: Path) -> None:
    run = extend.derive(parent, None, {"train.sequence_length": 32, "model.rope_scaling": None})
    assert run == tiny_run(3).with_({"train.sequence_length": 32, "model.rope_scaling": None})


def test_what_does_not_fit_is_refused_before_any_work(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.hidden_size is 32 in the parent, 64 here"):
        go(tiny_run(1, model={"hidden_size": 64}), tmp_path / "next", init=parent)
    with pytest.raises(ConfigError, match="model.routed_scaling_factor"):
        go(tiny_run(1, model={"routed_scaling_factor": 1.0}), tmp_path / "next", init=parent)
    data = TinyData()
    data.tokenizer.fingerprint = "another"
    with pytest.raises(ConfigError, match="tokenizer"):
        train(tiny_run(1), tmp_path / "next", data=data, init=parent, progress=False)
    with pytest.raises(ConfigError, match="does not exist"):
        go(tiny_run(1), tmp_path / "next", init=tmp_path / "nothing")
    assert not (tmp_path / "next").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in ("config.json", "lineage.json"):
        (empty / name).write_text((parent / name).read_text())
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        go(tiny_run(1), tmp_path / "next", init=empty)
