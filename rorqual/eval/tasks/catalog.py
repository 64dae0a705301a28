"""Benchmarks by name; the module of one is imported when it is asked for. No torch."""

from __future__ import annotations

import difflib
import importlib
from types import MappingProxyType

from rorqual.errors import ConfigError
from rorqual.eval.task import Task

BBH = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages", "formal_fallacies",
    "geometric_shapes", "hyperbaton", "logical_deduction_five_objects", "logical_deduction_seven_objects", "logical_deduction_three_objects",
    "movie_recommendation", "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks", "sports_understanding",
    "temporal_sequences", "tracking_shuffled_objects_five_objects", "tracking_shuffled_objects_seven_objects",
    "tracking_shuffled_objects_three_objects", "web_of_lies", "word_sorting",
)  # fmt: skip
MGSM = ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
LANGUAGES = ("python", "java", "cpp", "cs", "js", "ts", "php", "sh")
POLYGLOT = ("python", "cpp", "go", "java", "javascript", "rust")

MODULES = MappingProxyType(
    {
        "text": ("bpb",),
        "lambada": ("lambada",),
        "arc": ("arc_easy", "arc_challenge"),
        "piqa": ("piqa",),
        "winogrande": ("winogrande",),
        "hellaswag": ("hellaswag",),
        "mmlu": ("mmlu", "mmlu_redux", "mmlu_pro"),
        "boolq": ("boolq",),
        "commonsense": ("openbookqa", "commonsenseqa", "copa", "simple_arithmetic"),
        "triviaqa": ("triviaqa",),
        "nq": ("nq",),
        "drop": ("drop",),
        "bbh": tuple(f"bbh_{name}" for name in BBH),
        "agieval": ("agieval_gaokao_mathqa", "agieval_gaokao_mathcloze"),
        "gsm8k": ("gsm8k",),
        "hendrycks": ("math", "math_500"),
        "mgsm": tuple(f"mgsm_{name}" for name in MGSM),
        "cmath": ("cmath",),
        "svamp": ("svamp",),
        "humaneval": ("humaneval", *(f"humaneval_{name}" for name in LANGUAGES)),
        "mbpp": ("mbpp",),
        "cruxeval": ("cruxeval_i", "cruxeval_o"),
        "ifeval": ("ifeval",),
        "livecodebench": ("livecodebench",),
        "needle": ("needle",),
        "polyglot": tuple(f"polyglot_{name}" for name in (*POLYGLOT, *(f"{name}_whole" for name in POLYGLOT))),
        "gpqa": ("gpqa",),
        "named": ("race_middle", "race_high", "ceval", "cmmlu", "c3", "ccpm", "cluewsc", "cmrc", "mmmlu", "simpleqa", "aime"),
    }
)
"""File of this folder to the names of the tasks that its function `task` makes."""

GROUPS = MappingProxyType(
    {
        "bbh": tuple(f"bbh_{name}" for name in BBH),
        "mgsm": tuple(f"mgsm_{name}" for name in MGSM),
        "humaneval_mul": tuple(f"humaneval_{name}" for name in LANGUAGES),
        "agieval": ("agieval_gaokao_mathqa", "agieval_gaokao_mathcloze"),
        "polyglot": tuple(f"polyglot_{name}" for name in POLYGLOT),
        "polyglot_whole": tuple(f"polyglot_{name}_whole" for name in POLYGLOT),
        "cruxeval": ("cruxeval_i", "cruxeval_o"),
    }
)
"""Names for several tasks at once."""


def names() -> list[str]:
    """Every task, in the order of the catalog."""
    return [name for some in MODULES.values() for name in some]


def task(name: str) -> Task:
    """The task of that name; ConfigError lists near names when it is unknown. A path to a .json file is a generic task of the user's."""
    if name.endswith(".json"):
        from pathlib import Path

        from rorqual.eval.tasks import generic

        return generic.from_file(Path(name))
    for module, some in MODULES.items():
        if name in some:
            made: Task = importlib.import_module(f"rorqual.eval.tasks.{module}").task(name)
            return made
    close = difflib.get_close_matches(name, [*names(), *GROUPS], n=3)
    raise ConfigError(
        f"task ({name!r}) is not known; " + (f"did you mean {' or '.join(close)}?" if close else "`rorqual eval --list` shows all")
    )


def expand(text: str) -> list[str]:
    """Names of a comma-separated list, groups opened, each once."""
    found = [name for part in text.split(",") if part.strip() for name in GROUPS.get(part.strip(), (part.strip(),))]
    if not found:
        raise ConfigError("no task was named; use --tasks lambada,arc_easy or see `rorqual eval --list`")
    return list(dict.fromkeys(found))
