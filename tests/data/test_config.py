"""Options of builds and of loading are refused when they are made."""

from __future__ import annotations

from typing import Any

import pytest

from rorqual.data.config import BuildConfig, DataConfig
from rorqual.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fim_rate": 1.1}, r"fim_rate \(1.1\) must be a share in \[0, 1\]"),
        ({"fim_rate": float("nan")}, r"fim_rate \(nan\) must be a share"),
        ({"seed": -1}, r"seed \(-1\) must be 0 or larger"),
        ({"sources": {"code": -0.5}}, r"weight of source 'code' \(-0.5\) must be a finite number >= 0"),
        ({"sources": {"code": float("nan")}}, "weight of source 'code'"),
        ({"sources": {"code": float("inf")}}, "weight of source 'code'"),
        ({"sources": {"code": 0, "web": 0.0}}, "all source weights are zero"),
    ],
)
def test_loading(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation_rate": 1.0}, r"validation_rate \(1.0\) must be a share in \[0, 1\)"),
        ({"near_duplicate": -0.1}, r"near_duplicate \(-0.1\) must be a share in \[0, 1\]"),
        ({"split_rate": 2.0}, r"split_rate \(2.0\) must be a share"),
        ({"vocab_size": 0}, r"vocab_size \(0\) must be 1 or larger"),
        ({"tokenizer_bytes": 0}, r"tokenizer_bytes \(0\)"),
        ({"validation_bytes": -1}, r"validation_bytes \(-1\)"),
        ({"shard_bytes": 0}, r"shard_bytes \(0\)"),
        ({"arithmetic_documents": -1}, r"arithmetic_documents \(-1\) and seed \(0\) must be 0 or larger"),
        ({"seed": -3}, r"seed \(-3\) must be 0 or larger"),
        ({"text_field": ""}, "text_field is empty"),
    ],
)
def test_building(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildConfig(**change)


def test_borders_are_allowed() -> None:
    BuildConfig(validation_rate=0.0, near_duplicate=1.0, split_rate=1.0, arithmetic_documents=0)
    assert DataConfig(sources={"code": 0.0, "web": 1}, fim_rate=1.0).sources["web"] == 1
