"""AGIEval, the two Gaokao maths parts that are bundled (Zhong et al. 2023); no shots, generated answers in the report. No torch."""

from __future__ import annotations

import re

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.judges import judge_maths_line


def task(name: str) -> GenerationTask:
    """`agieval_gaokao_mathqa` (letters, all of them where several are right) or `agieval_gaokao_mathcloze` (a value)."""
    own = name.removeprefix("agieval_").replace("_", "-")
    choices = own == "gaokao-mathqa"
    return GenerationTask(
        name=name, version=1, files=(f"agieval_gaokao/{own}.jsonl", f"agieval/{own}.jsonl", f"{own}.jsonl"),
        form="JSON lines with 'passage', 'question', 'options', 'label' and 'answer'", fields=("question", "options", "label", "answer"), shots=0,
        prepare=_prepare, question=lambda row: row["query"], answer=lambda row: row["gold"], target_delimiter="",
        stop=("\n\n问题", "问题："), max_tokens=64 if choices else 128, judge=judge_letters if choices else judge_maths_line,
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    passage = f"{row['passage']} " if row.get("passage") else ""
    if row["options"]:
        last = "ABCDEFGH"[len(row["options"]) - 1]
        query = f"问题：{passage}{row['question']} 选项：{' '.join(row['options'])}\n答案：从A到{last}, 我们应选择"
        gold = "".join(re.findall("[A-H]", row["label"]))
    else:
        query, gold = f"问题：{passage}{row['question']}\n答案：", str(row["answer"])
    if not gold:
        raise ValueError("neither 'label' nor 'answer' holds an answer")
    return {"query": query, "gold": gold}


def judge_letters(row: Row, text: str, tools: Tools) -> Judgement:
    """The first run of letters A to H that is no part of a word; the set must be the right one."""
    found = re.search(r"(?<![A-Za-z])[(（]?([A-H](?:[\s,、和]*[A-H])*)(?![A-Za-z])", text)
    if found is None:
        return Judgement(0.0, None)
    letters = "".join(sorted(set(re.findall("[A-H]", found[1]))))
    return Judgement(float(letters == "".join(sorted(set(row["gold"])))), letters)
