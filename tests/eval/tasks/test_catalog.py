"""Names, groups and near names; the report's shots; every bundled task makes its prompts."""

from __future__ import annotations

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.eval import data
from rorqual.eval.tasks import catalog
from tests.eval import small

SHOTS = {
    "bbh_snarks": 3, "mmlu": 5, "mmlu_redux": 5, "mmlu_pro": 5, "drop": 3, "arc_easy": 25, "arc_challenge": 25, "hellaswag": 10, "piqa": 0, "winogrande": 5,
    "race_middle": 5, "race_high": 5, "triviaqa": 5, "nq": 5, "agieval_gaokao_mathqa": 0, "humaneval": 0, "mbpp": 3, "livecodebench": 3, "cruxeval_i": 2,
    "cruxeval_o": 2, "gsm8k": 8, "math": 4, "mgsm_de": 8, "cmath": 3, "cluewsc": 5, "ceval": 5, "cmmlu": 5, "cmrc": 1, "c3": 0, "ccpm": 0, "mmmlu": 5,
}  # fmt: skip
NAMES = [name for name in catalog.names() if not name.startswith("polyglot")]


def test_shots_are_the_reports():
    """Spec 9.2, table 3 of the report."""
    assert {name: catalog.task(name).shots for name in SHOTS} == SHOTS


@pytest.mark.parametrize("name", NAMES)
def test_every_name_makes_its_task_and_says_what_it_needs(name, tmp_path):
    task = catalog.task(name)
    assert task.name == name and task.version >= 1 and task.form
    with pytest.raises(DataError, match=f"task {name} needs .*; (put it there|name it with --data)"):
        task.items(tmp_path)


def test_groups_and_lists():
    assert catalog.expand("cruxeval, lambada,lambada") == ["cruxeval_i", "cruxeval_o", "lambada"]
    assert all(name in catalog.names() for some in catalog.GROUPS.values() for name in some)
    with pytest.raises(ConfigError, match="did you mean hellaswag"):
        catalog.task("helaswag")
    with pytest.raises(ConfigError, match="no task was named"):
        catalog.expand(" , ")


@small.needs_data
def test_bundled_data_make_prompts():
    made = []
    for name in NAMES:
        task = catalog.task(name)
        if name != "bpb" and data.find(small.DATA, task.files) is not None:
            items = task.items(small.DATA, limit=3)
            assert len(items) == 3 and all(item.prompt or item.pairs for item in items)
            made.append(name)
    assert len(made) == 69
