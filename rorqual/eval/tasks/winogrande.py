"""WinoGrande: which of two names fits a gap, scored by the common end of the sentence (Sakaguchi et al. 2019); 5 shots. No torch."""

from __future__ import annotations

from rorqual.eval.task import ChoiceTask, Row


def task(name: str) -> ChoiceTask:
    """`winogrande`; what is scored is the text after the gap, given each filled beginning."""
    return ChoiceTask(
        name=name, version=1, files=("winogrande/winogrande.jsonl", "winogrande.jsonl"),
        form="JSON lines with 'context_options', 'continuation' and 'gold', or upstream's 'sentence' with '_', 'option1', 'option2', 'answer'",
        fields=(), shots=5, shot_files=("winogrande/winogrande_train.jsonl",), prepare=_prepare,
        question=lambda row: row["contexts"][row["gold"]], answer=lambda row: row["end"], contexts=lambda row: row["contexts"],
        options=lambda row: [row["end"]] * 2, gold=lambda row: row["gold"],
    )  # fmt: skip


def _prepare(row: Row) -> Row:
    if "sentence" in row:
        before, _, end = row["sentence"].partition("_")
        return {"contexts": [before + row["option1"], before + row["option2"]], "end": end.strip(), "gold": int(row["answer"]) - 1}
    return {"contexts": row["context_options"], "end": row["continuation"].strip(), "gold": int(row["gold"])}
