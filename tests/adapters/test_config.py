"""Adapters' settings: scale by hand, refusals by name."""

from __future__ import annotations

import pytest

from rorqual.adapters.config import LoraConfig
from rorqual.errors import ConfigError


def test_the_scale_is_alpha_over_rank():
    assert LoraConfig(rank=8).scale == 2.0 and LoraConfig(rank=8, alpha=4.0).scale == 0.5


@pytest.mark.parametrize(("changes", "told"), [({"rank": 0}, "rank"), ({"rank": True}, "rank"), ({"alpha": 0.0}, "alpha"), ({"targets": ("head",)}, "head"), ({"targets": ()}, "none")])  # fmt: skip
def test_what_cannot_be_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        LoraConfig(**changes)
