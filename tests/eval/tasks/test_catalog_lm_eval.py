"""Prompts byte for byte against lm-evaluation-harness 0.4.13's own task files, at equal shots and examples, for every task that it has.

Its task files are read as they are; only where the rows lie is changed, and the sampler of shots where none is named (the first ones). Not
compared: tasks that it runs in another way (MMLU-Pro reasons first, the letters of AGIEval are scored there and generated here), DROP with
shots, where its own shots hold the names of the answer's fields, and RACE articles of several questions, which it shows in one prompt.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is the extra eval")

from rorqual.eval.task import Item  # noqa: E402
from rorqual.eval.tasks import catalog  # noqa: E402
from tests.eval import small  # noqa: E402
from tests.eval.tasks import fixture, test_drop, test_hellaswag, test_hendrycks, test_mmlu, test_named, test_nq, test_triviaqa  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
FOLDER = Path(lm_eval.__file__).parent / "tasks"


def _examples(path: str) -> list[dict[str, Any]]:
    """The list that a function of theirs returns, read without running the file, which asks for packages and the network."""
    tree = ast.parse((FOLDER / path).read_text())
    found = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "list_fewshot_samples")
    returned = found.body[-1]
    assert isinstance(returned, ast.Return) and returned.value is not None
    return list(ast.literal_eval(returned.value))


def _function(path: str) -> Any:
    """Their doc_to_text alone, out of a file that cannot be loaded here."""
    tree = ast.parse((FOLDER / path).with_name("utils.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "doc_to_text"]
    space: dict[str, Any] = {}
    exec(compile(tree, "utils.py", "exec"), space)
    return space["doc_to_text"]


def _theirs(
    path: str, rows: list[dict[str, Any]], shots: int, folder: Path, dev: list[dict[str, Any]] | None, plain: bool
) -> list[list[tuple[str, ...]]]:
    """Arguments of their requests, by item. `plain`: without their functions, which cannot be loaded here."""
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(FOLDER / path, resolve_func=not plain)
    if str(config["doc_to_text"]).endswith("utils.doc_to_text"):
        config["doc_to_text"] = _function(path)
    if plain:
        for key in ("metric_list", "filter_list", "process_docs", "process_results", "fewshot_config", "unsafe_code"):
            config.pop(key, None)
    parts = {"test": rows, **({"dev": dev} if dev is not None else {})}
    for name, part in parts.items():
        (folder / f"{name}.json").write_text("\n".join(json.dumps(row) for row in part))
    config |= {
        "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {name: str(folder / f"{name}.json") for name in parts}, "cache_dir": str(folder / "cache")},
        "training_split": None, "validation_split": None, "test_split": "test", "fewshot_split": "dev" if dev is not None else "test", "num_fewshot": shots,
        "task": "compared", "unsafe_code": False,
    }  # fmt: skip
    config["fewshot_config"] = {**(config.get("fewshot_config") or {}), "sampler": "first_n"}
    task = ConfigurableTask(config=config)
    task.build_all_requests(limit=None, rank=0, world_size=1)
    out: dict[int, list[tuple[str, ...]]] = {}
    for one in task.instances:
        out.setdefault(one.doc_id, []).append(one.args[:2] if one.request_type == "loglikelihood" else one.args[:1])
    return [out[number] for number in sorted(out)]


def _ours(items: list[Item]) -> list[list[tuple[str, ...]]]:
    return [list(item.pairs) or [(item.prompt,)] for item in items]


BBH = [{"input": f"which {n}?", "target": "no"} for n in range(4)]
MGSM = [{"question": f"Wie viele {n}?", "answer": None, "answer_number": n, "equation_solution": None} for n in range(4)]
CODE = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f"def f{n}():\n",
        "entry_point": f"f{n}",
        "canonical_solution": "    pass\n",
        "test": "def check(c): pass",
    }
    for n in range(3)
]
MBPP = [{"task_id": n, "text": f"Write {n}.", "code": "pass", "test_list": ["assert 1", "assert 2", "assert 3"]} for n in (11, 12)]
CRUX = [{"id": f"s{n}", "code": f"def f(x): return {n}", "input": "1", "output": f"{n}"} for n in range(4)]
IFEVAL = [{"key": n, "prompt": f"Say {n}.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]} for n in range(3)]
PIQA = [{"goal": f"Goal {n}", "sol1": "do", "sol2": "do not", "label": n % 2} for n in range(4)]
WINOGRANDE = [
    {"sentence": f"The whale {n} saw the boat because _ was big.", "option1": "whale", "option2": "boat", "answer": "12"[n % 2]}
    for n in range(4)
]
ARC = [
    {"id": str(n), "question": f"Who {n}?", "choices": {"text": ["ape", "bat", "cat"], "label": ["A", "B", "C"]}, "answerKey": "ABC"[n % 3]}
    for n in range(4)
]
BOOLQ = [{"passage": f"Whales {n}.", "question": "do whales sing", "label": n % 2} for n in range(4)]
GSM8K = [{"question": f"How many {n}?", "answer": f"It is {n}.\n#### {n}"} for n in range(4)]
LAMBADA = [{"text": f"The whale {n} sings in the deep"} for n in range(3)]
AIME = [{"problem": f"Find {n}.", "answer": str(n), "Problem": f"Find {n}.", "Answer": str(n)} for n in range(3)]

# ours, place, their file, rows, shots, shot rows and their place, their functions left out
CASES: list[tuple[Any, ...]] = [
    ("nq", "nq/validation.jsonl", "nq_open/nq_open.yaml", [{**row, "answer": row["answer"] if isinstance(row["answer"], list) else [row["answer"]]} for row in test_nq.ROWS], 2, None, False),
    ("triviaqa", "triviaqa/validation.jsonl", "triviaqa/default.yaml", test_triviaqa.ROWS, 2, None, False),
    ("hellaswag", "hellaswag/hellaswag_val.jsonl", "hellaswag/hellaswag.yaml", test_hellaswag.ROWS, 2, None, False),
    ("mmlu", "mmlu/test.jsonl", "mmlu/default/mmlu_anatomy.yaml", [{**row, "subject": "anatomy"} for row in test_mmlu.ROWS], 2, "mmlu/dev.jsonl", False),
    ("ceval", "ceval/test.jsonl", "ceval/ceval-valid_law.yaml", test_named.ROWS["ceval"], 2, "ceval/dev.jsonl", False),
    ("cmmlu", "cmmlu/test.jsonl", "cmmlu/cmmlu_anatomy.yaml", test_named.ROWS["cmmlu"], 2, "cmmlu/dev.jsonl", False),
    ("math", "math/test.jsonl", "minerva_math/minerva_math_algebra.yaml", test_hendrycks.ROWS, 2, None, True),
    ("humaneval", "HumanEval.jsonl", "humaneval/humaneval.yaml", CODE, 0, None, True),
    ("mgsm_de", "mgsm_de.tsv", "mgsm/direct/mgsm_direct_de.yaml", MGSM, 2, None, False),
    ("mgsm_zh", "mgsm_zh.tsv", "mgsm/direct/mgsm_direct_zh.yaml", MGSM, 0, None, False),
    ("mgsm_fr", "mgsm_fr.tsv", "mgsm/direct/mgsm_direct_fr.yaml", MGSM, 0, None, False),
    ("cruxeval_i", "cruxeval.jsonl", "cruxeval/cruxeval_input.yaml", CRUX, 0, None, True),
    ("cruxeval_o", "cruxeval.jsonl", "cruxeval/cruxeval_output.yaml", CRUX, 0, None, True),
    ("ifeval", "ifeval.jsonl", "ifeval/ifeval.yaml", IFEVAL, 0, None, True),
    ("piqa", "piqa.jsonl", "piqa/piqa.yaml", PIQA, 2, None, False),
    ("winogrande", "winogrande.jsonl", "winogrande/default.yaml", WINOGRANDE, 2, None, False),
    ("arc_easy", "arc_easy.jsonl", "arc/arc_easy.yaml", ARC, 2, None, False),
    ("boolq", "boolq.jsonl", "super_glue/boolq/default.yaml", BOOLQ, 2, None, False),
    ("gsm8k", "gsm8k.jsonl", "gsm8k/gsm8k.yaml", GSM8K, 2, None, False),
    ("lambada", "lambada.jsonl", "lambada/lambada_openai.yaml", LAMBADA, 0, None, False),
    ("aime", "aime.jsonl", "aime/aime24.yaml", AIME, 0, None, True),
    ("drop", "drop.jsonl", "drop/default.yaml", test_drop.ROWS[:2], 0, None, False),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_prompts(case, tmp_path):
    name, place, path, rows, shots, shot_place, plain = case
    dev = None
    if place.endswith(".tsv"):
        (tmp_path / place).write_text("".join(f"{row['question']}\t{row['answer_number']}\n" for row in rows))
    else:
        fixture.put(tmp_path, place, rows)
    if shot_place is not None:
        dev = [
            {**row, **({"question": f"D {row['question']}"} if "question" in row else {"Question": f"D {row['Question']}"})}
            for row in rows[:3]
        ]
        fixture.put(tmp_path, shot_place, dev)
    if name == "drop":
        rows = [{**row, "validated_answers": {"number": [], "date": [], "spans": []}} for row in rows]
    if name == "boolq":
        rows = [{**row, "idx": n} for n, row in enumerate(rows)]
    if name == "math":  # as their own function marks rows of shots
        rows = [{**row, "few_shot": "1", "answer": ""} for row in rows]
    theirs = _theirs(path, rows, shots, tmp_path, dev, plain)
    assert _ours(catalog.task(name).items(tmp_path, shots)) == theirs


def test_mbpp_with_their_shots(tmp_path):
    """Their three shots are ids 2, 3 and 4 of the file itself."""
    shots = _examples("mbpp/utils.py")
    ours = catalog.task("mbpp").items(fixture.put(tmp_path, "mbpp.jsonl", [*shots, *MBPP]), 3)
    theirs = _theirs("mbpp/mbpp.yaml", [{**row, "is_fewshot": True} for row in shots] + MBPP, 0, tmp_path, None, True)
    assert ours[0].prompt.endswith(theirs[3][0][0]) and ours[0].prompt.count("[DONE]\n\n") == 3
    expected = "".join(f"{theirs[n][0][0]}{shot['code']}\n[DONE]\n\n" for n, shot in enumerate(shots))
    assert ours[0].prompt == expected + theirs[3][0][0]


def test_race_articles_of_one_question(tmp_path):
    rows = test_named.ROWS["race_high"]
    theirs = _theirs("race/race.yaml", [{"article": row["article"], "problems": str([{key: row[key] for key in ("question", "options", "answer")}])} for row in rows], 0, tmp_path, None, False)  # fmt: skip
    assert _ours(catalog.task("race_high").items(fixture.put(tmp_path, "race_high.jsonl", rows), 0)) == theirs


def test_gpqa_at_the_same_order(tmp_path):
    from tests.eval.tasks import test_gpqa

    items = catalog.task("gpqa").items(fixture.put(tmp_path, "gpqa.jsonl", test_gpqa.ROWS))
    made = [
        {"Question": item.row["question"], "answer": "(A)", **{f"choice{n + 1}": text for n, text in enumerate(item.row["choices"])}}
        for item in items
    ]
    assert _ours(items) == _theirs("gpqa/zeroshot/gpqa_diamond_zeroshot.yaml", made, 0, tmp_path, None, True)


@small.needs_data
@pytest.mark.parametrize("name", [name for name in catalog.BBH if (FOLDER / "bbh" / "cot_fewshot" / f"{name}.yaml").is_file()])
def test_bbh_at_their_shots(name, tmp_path):
    """Its shots are copies of the prompt files; their words may differ in white space alone."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(FOLDER / "bbh" / "cot_fewshot" / f"{name}.yaml", resolve_func=False)
    item = catalog.task(f"bbh_{name}").items(small.DATA, limit=1)[0]
    shots = "".join(f"Q: {one['input']}\nA: Let's think step by step.\n{one['target']}\n\n" for one in config["fewshot_config"]["samples"])
    whole = f"{config['description']}{shots}Q: {item.row['input']}\nA: Let's think step by step.\n"
    assert item.prompt.split() == whole.split()
    if name == "boolean_expressions":
        assert item.prompt == whole
