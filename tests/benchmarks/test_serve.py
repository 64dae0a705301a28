"""What benchmarks/serve.py refuses before it builds anything."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("serve_benchmark", FOLDER / "serve.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules.pop("common", None)
    return module


def test_a_device_that_is_not_there_is_refused(serve: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert serve.device_of("cpu") == "cpu"
    for name, message in (("cuda", "torch sees no CUDA device; use 'cpu'"), ("tpu", "is not known; use 'auto', 'cpu'")):
        with pytest.raises(SystemExit, match=message):
            serve.main(["--config", "nano", "--device", name])
