"""Names, groups and near names; the report's shots; every bundled task makes its prompts."""

from __future__ import annotations

import time

import pytest

from rorqual.errors import ConfigError, DataError
from rorqual.eval import data
from rorqual.eval.task import GenerationTask, Tools
from rorqual.eval.tasks import catalog
from tests.eval import small

SHOTS = {
    "bbh_snarks": 3, "mmlu": 5, "mmlu_redux": 5, "mmlu_pro": 5, "drop": 3, "arc_easy": 25, "arc_challenge": 25, "hellaswag": 10, "piqa": 0, "winogrande": 5,
    "race_middle": 5, "race_high": 5, "triviaqa": 5, "nq": 5, "agieval_gaokao_mathqa": 0, "humaneval": 0, "mbpp": 3, "livecodebench": 3, "cruxeval_i": 2,
    "cruxeval_o": 2, "gsm8k": 8, "math": 4, "mgsm_de": 8, "cmath": 3, "cluewsc": 5, "ceval": 5, "cmmlu": 5, "cmrc": 1, "c3": 0, "ccpm": 0, "mmmlu": 5,
}  # fmt: skip
NAMES = [name for name in catalog.names() if not name.startswith("polyglot")]
ENDS = [name for name in NAMES if any(name in (some[0], some[-1]) for some in catalog.MODULES.values())]


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


@pytest.mark.slow
@small.needs_data
def test_bundled_data_make_prompts():
    made = []
    for name in ENDS:
        task = catalog.task(name)
        if name != "bpb" and data.find(small.DATA, task.files) is not None:
            items = task.items(small.DATA, limit=3)
            assert len(items) == 3 and all(item.prompt or item.pairs for item in items)
            made.append(name)
    assert len(made) == 26


@small.needs_data
def test_answers_that_no_model_should_give_score_nothing():
    """Nothing, one letter for ever, digits for ever, half a surrogate pair, NUL, open braces: 0 or undecided, at once, and no error."""
    tools = Tools(5)
    for name in [name for name in ENDS if name in [some[0] for some in catalog.MODULES.values()]]:
        task = catalog.task(name)
        if not isinstance(task, GenerationTask) or task.runs_code or data.find(small.DATA, task.files) is None:
            continue
        row = task.items(small.DATA, limit=1)[0].row
        for text in (
            "",
            " \n",
            "a" * 8192,
            "7" * 8192,
            "\udcff",
            "\0",
            "{" * 4000,
            "(" * 4000,
            "answer is " * 1000,
            "<think>" * 100,
            "\\boxed{" * 500,
        ):
            start = time.monotonic()
            found = task.judge(row, text, tools)
            assert found.score in (0.0, None) or name == "ifeval", (name, text[:9])
            assert time.monotonic() - start < 6 and (found.answer is None or text.strip())
