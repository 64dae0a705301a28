"""`rorqual inspect`: figures of presets and configurations, folders against their configuration."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rorqual.cli.inspect import main
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError, ConfigError
from rorqual.planner.inventory import inventory
from rorqual.presets import FP8_QUANTIZATION, PRESETS
from tests.tiny import t0

_BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F8_E4M3": 1, "F8_E8M0": 1}
Layout = dict[str, tuple[str, tuple[int, ...]]]


def layout_of(config: ModelConfig, dtype: str = "BF16") -> Layout:
    return {tensor.name: (tensor.dtype, tensor.shape) for tensor in inventory(config, dtype)}


def save(folder: Path, layout: Mapping[str, tuple[str, tuple[int, ...]]], config: Mapping[str, Any]) -> Path:
    """A folder of zeros with these tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for name, (dtype, shape) in layout.items():
        end = at + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(at))
    return folder


def inspect(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, Any]:
    code = main([*map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_671b(capsys: pytest.CaptureFixture[str]) -> None:
    code, report = inspect(capsys, "--preset", "v3_671b")
    assert code == 0
    expected = {
        "tensors": 91_991, "elements": 684_531_386_000, "bytes": 688_574_839_360, "parameters_total": 671_026_419_200,
        "parameters_active": 37_552_297_472, "parameters_active_without_embedding": 36_625_618_432,
        "parameters_active_without_embedding_and_head": 35_698_939_392, "parameters_mtp": 11_610_068_224, "cache_values_per_token": 35_136,
        "cache_bytes_per_token": {"bf16": 70_272, "fp32": 140_544},
    }  # fmt: skip
    assert {key: report[key] for key in expected} == expected
    assert "without MTP" in report["conventions"]["parameters_total"]
    assert "folder" not in report


def test_671b_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "v3_671b"]) == 0
    text = capsys.readouterr().out
    for words in ("671,026,419,200", "37,552,297,472", "91,991", "688,574,839,360", "70,272 bytes per token", "250.45 GFLOP", "8 of 256 routed experts",
                  "embedding and head included", "without MTP modules"):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    ("name", "total", "active", "without_embedding", "cache"),
    [
        pytest.param("v3_0324", 671_026_419_200, 37_552_297_472, 36_625_618_432, 70_272, marks=pytest.mark.slow),
        ("v2_236b", 235_741_434_880, 21_375_800_320, 20_851_512_320, 69_120),
        ("v2_lite_16b", 15_706_484_224, 2_661_150_208, 2_451_435_008, 31_104),
        ("moonlight_16b", 15_960_110_208, 2_914_776_192, 2_579_231_872, 31_104),
        ("kimi_k2", 1_026_408_232_448, 32_861_500_928, 31_687_095_808, 70_272),
    ],
)
def test_every_member(capsys: pytest.CaptureFixture[str], name: str, total: int, active: int, without_embedding: int, cache: int) -> None:
    report = inspect(capsys, "--preset", name)[1]
    assert (report["parameters_total"], report["parameters_active"]) == (total, active)
    assert (report["parameters_active_without_embedding"], report["cache_bytes_per_token"]["bf16"]) == (without_embedding, cache)
    assert report["layout"].startswith("BF16" if "v2" in name or name == "moonlight_16b" else "FP8 E4M3 in blocks of 128 x 128")
    assert main(["--preset", name]) == 0
    text = capsys.readouterr().out
    assert f"{total:,}" in text and PRESETS[name].title in text
    assert ("MTP   " in text) == name.startswith("v3")


def test_what_no_source_confirms_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    unverified = inspect(capsys, "--preset", "kimi_k2")[1]["unverified"]
    assert unverified["rms_norm_eps"] == {"value": 1e-6, "reason": "copies of config.json have 1e-6 and 1e-5"}
    assert unverified["rope_scaling"]["value"]["beta_fast"] == 1.0
    assert inspect(capsys, "--preset", "v3_671b")[1]["unverified"] == {}
    main(["--preset", "kimi_k2"])
    assert "unverified  rms_norm_eps 1e-06: copies of config.json have 1e-6 and 1e-5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("v3_671b", "DeepSeek Model Licence v1.0"),
        ("r1", "MIT"),
        pytest.param("v3_1", "not recorded", marks=pytest.mark.slow),
        pytest.param("kimi_k2", "not recorded", marks=pytest.mark.slow),
    ],
)
def test_licence_terms_of_presets(capsys: pytest.CaptureFixture[str], name: str, licence: str) -> None:
    assert inspect(capsys, "--preset", name)[1]["licence"] == licence
    assert main(["--preset", name]) == 0
    assert f"licence     {licence}\n" in capsys.readouterr().out


def test_power_of_two_scales_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    v3, v3_1 = (inspect(capsys, "--preset", name)[1] for name in ("v3_671b", "v3_1"))
    assert v3_1["layout"] == v3["layout"] + ", powers of two (ue8m0)"
    assert (v3_1["tensors"], v3_1["elements"], v3_1["bytes"]) == (91_991, 684_531_386_000, 688_574_839_360)


def test_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    reports = {layout: inspect(capsys, "--preset", "v2_lite_16b", "--layout", layout)[1] for layout in ("bf16", "fp32", "fp8")}
    assert inspect(capsys, "--preset", "v2_lite_16b")[1]["bytes"] == reports["bf16"]["bytes"] == 2 * 15_706_484_224
    assert reports["fp32"]["bytes"] == 4 * 15_706_484_224
    assert reports["fp8"]["tensors"] > reports["bf16"]["tensors"]
    assert inspect(capsys, "--preset", "v3_671b", "--layout", "bf16")[1]["elements"] == 684_531_386_000 - 41_540_496


def test_configuration_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(t0().to_hf()))
    _, from_file = inspect(capsys, tmp_path / "config.json")
    _, from_folder = inspect(capsys, tmp_path)
    assert from_file["tensors"] == from_folder["tensors"] == len(inventory(t0()))
    assert from_file["cache_values_per_token"] == 3 * 40
    assert "folder" not in from_folder


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_whole_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str) -> None:
    folder = save(tmp_path, layout_of(t0(), dtype), t0().to_hf())
    code, report = inspect(capsys, folder)
    assert code == 0
    assert report["folder"]["bytes"] == report["bytes"] == sum(t.bytes for t in inventory(t0(), dtype))
    assert report["folder"]["tensors"] == report["tensors"]
    assert (report["folder"]["missing"], report["folder"]["extra"], report["folder"]["different"]) == ([], [], [])


def test_fp8_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = t0(quantization_config=FP8_QUANTIZATION)
    layout = layout_of(config)
    assert inspect(capsys, save(tmp_path, layout, config.to_hf()))[0] == 0
    layout["model.layers.0.mlp.up_proj.weight"] = ("BF16", (160, 64))
    del layout["model.layers.1.self_attn.o_proj.weight_scale_inv"]
    code, report = inspect(capsys, save(tmp_path, layout, config.to_hf()))
    assert code == 1
    assert report["folder"]["missing"] == ["model.layers.1.self_attn.o_proj.weight_scale_inv"]
    assert report["folder"]["different"] == ["model.layers.0.mlp.up_proj.weight: dtype BF16, the configuration makes it F8_E4M3"]


@pytest.mark.parametrize("scales", ["F32", "BF16", "F8_E8M0"])
def test_scales_of_any_of_their_dtypes(capsys: pytest.CaptureFixture[str], tmp_path: Path, scales: str) -> None:
    config = t0(quantization_config=FP8_QUANTIZATION)
    layout = {name: (scales if name.endswith("_scale_inv") else dtype, shape) for name, (dtype, shape) in layout_of(config).items()}
    code, report = inspect(capsys, save(tmp_path, layout, config.to_hf()))
    assert code == 0 and report["folder"]["different"] == [] and scales in report["folder"]["dtypes"]


def test_quantisation_is_what_the_tensors_are(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Field case F09, rows x and y."""
    quantised = t0(quantization_config=FP8_QUANTIZATION)
    code, report = inspect(capsys, save(tmp_path / "x", layout_of(t0()), quantised.to_hf()))
    assert code == 0 and report["layout"].startswith("BF16") and "quantization_config" in report["folder"]["notices"][0]
    code, report = inspect(capsys, save(tmp_path / "y", layout_of(quantised), t0().to_hf()))
    assert code == 0 and report["layout"].startswith("FP8") and "has no quantization_config" in report["folder"]["notices"][0]
    ragged = {name: (dtype, (9, 9) if name.endswith("o_proj.weight_scale_inv") else shape) for name, (dtype, shape) in layout_of(quantised).items()}  # fmt: skip
    code, report = inspect(capsys, save(tmp_path / "z", ragged, t0().to_hf()))
    assert code == 1 and report["folder"]["different"][0].endswith(
        "o_proj.weight_scale_inv: shape [9, 9], the configuration makes it [1, 1]"
    )


def test_plain_weights_among_fp8_and_scales_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    quantised = t0(quantization_config=FP8_QUANTIZATION)
    layout, name = layout_of(quantised), "model.layers.0.mlp.up_proj.weight"
    layout[name] = ("BF16", (160, 64))
    scales = layout.pop(f"{name}_scale_inv")
    code, report = inspect(capsys, save(tmp_path / "plain", layout, quantised.to_hf()))
    assert code == 0 and report["folder"]["notices"] == ["1 weights are plain among FP8 ones: read as they are"]
    plain = layout_of(t0()) | {f"{name}_scale_inv": scales}
    code, report = inspect(capsys, save(tmp_path / "stray", plain, t0().to_hf()))
    assert code == 1 and report["folder"]["different"] == [f"{name}_scale_inv: scales, and no FP8 weight beside them"]
    assert report["folder"]["extra"] == []


def test_dtypes_that_no_reader_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    layout = layout_of(t0())
    layout["model.norm.weight"] = ("I32", (64,))
    code, report = inspect(capsys, save(tmp_path, layout, t0().to_hf()))
    assert code == 1 and report["folder"]["different"] == ["model.norm.weight: dtype I32, readers take F32, BF16, F16, F8_E4M3"]


def test_names_without_the_prefix(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    layout = {name.removeprefix("model."): value for name, value in layout_of(t0()).items()}
    assert inspect(capsys, save(tmp_path, layout, t0().to_hf()))[0] == 0


def _rename(layout: Layout) -> None:
    layout["model.layers.1.mlp.gate.wieght\x1b[2J"] = layout.pop("model.layers.1.mlp.gate.weight")


def _reshape(layout: Layout) -> None:
    layout["model.norm.weight"] = ("BF16", (65,))


def _no_mtp(layout: Layout) -> None:
    for name in [name for name in layout if name.startswith("model.layers.3.")]:
        del layout[name]


def _no_copies(layout: Layout) -> None:
    del layout["model.layers.3.embed_tokens.weight"], layout["model.layers.3.shared_head.head.weight"]


@pytest.mark.parametrize(
    ("edit", "code", "found"),
    [
        (_rename, 1, {"missing": ["model.layers.1.mlp.gate.weight"], "extra": ["model.layers.1.mlp.gate.wieght\x1b[2J"]}),
        (_reshape, 1, {"different": ["model.norm.weight: shape [65], the configuration makes it [64]"]}),
        (_no_mtp, 0, {"absent_mtp_modules": 1, "missing": []}),
        (_no_copies, 0, {"absent_mtp_modules": 0, "missing": []}),
    ],
)
def test_what_does_not_fit_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, edit: Callable[[Layout], None], code: int, found: dict[str, Any]
) -> None:
    layout = layout_of(t0())
    edit(layout)
    folder = save(tmp_path, layout, t0().to_hf())
    got, report = inspect(capsys, folder)
    assert got == code
    assert {key: report["folder"][key] for key in found} == found
    assert main([str(folder)]) == code
    text = capsys.readouterr().out
    assert "\x1b" not in text
    for name in found.get("missing", []):
        assert name in text


def test_tied_head_and_absent_rank(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = t0(tie_word_embeddings=True, q_lora_rank=None)
    layout = {**layout_of(config), "lm_head.weight": ("BF16", (256, 64))}
    raw = config.to_hf()
    del raw["q_lora_rank"]
    code, report = inspect(capsys, save(tmp_path, layout, raw))
    assert code == 0
    assert report["folder"]["extra"] == []
    assert report["shape"]["q_lora_rank"] is None


def test_long_lists_are_cut_in_words(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    layout = {name: value for name, value in layout_of(t0()).items() if ".experts." not in name or ".layers.3." in name}
    assert main([str(save(tmp_path, layout, t0().to_hf()))]) == 1
    assert "and 40 more (--json lists them)" in capsys.readouterr().out


def test_run_folder_stands_for_its_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="exported no model yet"):
        main([str(tmp_path)])
    save(tmp_path / "hf", layout_of(t0()), t0().to_hf())
    assert inspect(capsys, tmp_path)[1]["source"] == str(tmp_path / "hf")


def test_exported_model_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from rorqual.checkpoint.hf import export
    from rorqual.model.transformer import CausalLM

    config = t0(tie_word_embeddings=True, num_nextn_predict_layers=2)
    model = CausalLM(config)
    model.init_weights(0)
    export(model, None, tmp_path / "out", dtype="fp32")
    code, report = inspect(capsys, tmp_path / "out")
    assert code == 0
    assert report["folder"]["missing"] == report["folder"]["extra"] == report["folder"]["different"] == []
    assert report["parameters_total"] + report["parameters_mtp"] == sum(t.numel() for t in model.state_dict().values())
    assert report["folder"]["dtypes"].keys() == {"F32"} and torch.get_default_dtype() == torch.float32


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        main([str(tmp_path / "absent")])
    with pytest.raises(ConfigError, match="'v4'"):
        main(["--preset", "v4"])
    save(tmp_path, {}, t0().to_hf())
    (tmp_path / "model.safetensors").write_bytes((10**18).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header length"):
        main([str(tmp_path)])
    for argv in ([], ["x", "--preset", "v3_671b"]):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
    capsys.readouterr()


def test_needs_neither_torch_nor_numpy() -> None:
    code = "import sys; from rorqual.cli.inspect import main; main(['--preset', 'v3_671b']); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", "False"]
