"""Recipes by name; the module of a recipe is imported when it is asked for. No torch."""

from __future__ import annotations

import importlib
from types import MappingProxyType

from rorqual.errors import ConfigError
from rorqual.train.hyperparams import RunConfig

RECIPES = MappingProxyType(
    {
        "laptop": "rorqual.recipes.laptop",
        "laptop_1h": "rorqual.recipes.laptop",
        "one_gpu": "rorqual.recipes.one_gpu",
        "v2_lite_16b": "rorqual.recipes.v2_lite_16b",
        "v3_671b": "rorqual.recipes.v3_671b",
        "v3_671b_32k": "rorqual.recipes.v3_671b",
        "v3_671b_128k": "rorqual.recipes.v3_671b",
    }
)
"""Name of the recipe, which is also its function's, to the module that holds it."""


def recipe(name: str) -> RunConfig:
    """The complete run of that name; ConfigError lists the names when it is unknown."""
    if name not in RECIPES:
        raise ConfigError(f"recipe ({name!r}) is not known; there are {', '.join(RECIPES)}")
    config: RunConfig = getattr(importlib.import_module(RECIPES[name]), name)()
    return config
