"""`rorqual doctor`: what it says is what the machine and torch say."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from rorqual.cli import doctor
from rorqual.kernels import ops


def test_json_holds_the_machine_the_build_and_every_kernel_choice(capsys):
    assert doctor.main(["--json", "--seconds", "0"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert 0 < report["machine"]["disk_free_bytes"] <= shutil.disk_usage(".").total
    assert report["torch"]["version"] == torch.__version__
    assert report["torch"]["build"].split()[0] in ("CPU", "CUDA", "ROCm")
    assert report["torch"]["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert report["rates"] is None
    assert report["kernels"] == ops.backend_report()
    assert all(row["op"] and row["backend"] and row["why"] for row in report["kernels"])


def test_rates_are_measured(capsys):
    assert doctor.main(["--json", "--seconds", "0.05"]) == 0
    rates = json.loads(capsys.readouterr().out)["rates"]
    assert rates["gemm_gflops"] > 0.1
    assert rates["memory_gbps"] > 0.1


def test_text_names_every_operation_and_why(capsys):
    assert doctor.main(["--seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert torch.__version__ in out
    for row in ops.backend_report():
        assert row["op"] in out
        assert row["why"] in out


def test_plain_kernels_are_reported_with_their_reason(monkeypatch, capsys):
    rows = [{"op": "rms_norm", "backend": "plain PyTorch", "why": "no C++ compiler found"}]
    monkeypatch.setattr(ops, "backend_report", lambda: rows)
    monkeypatch.setattr(shutil, "which", lambda *name, **where: None)
    assert doctor.main(["--seconds", "0"]) == 0
    out = capsys.readouterr().out
    assert "plain PyTorch: rms_norm\n    because: no C++ compiler found" in out
    assert "none found: the plain PyTorch kernels are used; install g++" in out


def test_cuda_build_without_a_device_says_so(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    found = doctor.torch_build()
    assert (found["build"], found["device"]) == ("CUDA 13.0", "cpu")
    assert "sees no device" in found["why"]


@pytest.mark.parametrize("seconds", ["-1", "61", "nan"])
def test_time_out_of_range_is_wrong_usage(seconds, capsys):
    with pytest.raises(SystemExit) as stop:
        doctor.main(["--seconds", seconds])
    assert stop.value.code == 2
    assert "must be between 0 and 60" in capsys.readouterr().err


def test_the_sandbox_is_named_or_the_reason_why_there_is_none(monkeypatch, capsys):
    assert doctor._sandbox_line(doctor.sandbox()).startswith(("bubblewrap (", "landlock (", "none: generated code cannot be run here"))
    from rorqual.eval.isolation import probe

    monkeypatch.setattr(probe, "missing", lambda mechanism: "it is absent")
    assert doctor.main(["--seconds", "0"]) == 0
    assert "none: generated code cannot be run here: no sandbox holds (bubblewrap: it is absent" in capsys.readouterr().out
