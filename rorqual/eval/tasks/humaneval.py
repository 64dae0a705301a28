"""HumanEval (Chen et al. 2021) and its form in eight languages (HumanEval-Mul of the report's table 6); pass@1, no shots. No torch.

Candidates run in the sandbox; Python's tests run apart from the candidate (rorqual/eval/grade.py), those of the other languages are taken
apart into calls and values (tasks/parted.py). C++ 137 does not compile as published (tasks/unions.py): it counts, and scores 0.
"""

from __future__ import annotations

import re

from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks import programs
from rorqual.eval.tasks.judges import completion, run_code, run_parted

_STOPS = {
    "python": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), "java": ("\n    }\n",), "cs": ("\n    }\n",), "cpp": ("\n}",), "sh": ("\n}",),
    "js": ("\nfunction ", "\n/*", "\n//", "\nconsole.log"), "ts": ("\nfunction ", "\n/*", "\n//", "\nclass"), "php": ("\nfunction", "\n?>", "\n//", "\n#"),
}  # fmt: skip


def task(name: str) -> GenerationTask:
    """`humaneval` (OpenAI's file) or `humaneval_LANGUAGE` (DeepSeek-Coder's files)."""
    language = name.removeprefix("humaneval").removeprefix("_")
    files: tuple[str, ...] = ("humaneval/HumanEval.jsonl.gz", "HumanEval.jsonl.gz", "HumanEval.jsonl")
    if language:
        files = (f"humaneval_mul/humaneval-{language}.jsonl", f"humaneval-{language}.jsonl")
    kind = language or "python"
    return GenerationTask(
        name=name, version=1, files=files, form="JSON lines with 'task_id', 'prompt' and 'test' (Python also 'entry_point')",
        fields=("task_id", "prompt", "test"), shots=0, row_id="task_id", question=lambda row: row["prompt"], answer=lambda row: row.get("canonical_solution", ""),
        target_delimiter="", metric="pass@1", stop=_STOPS[kind], max_tokens=1024, judge=lambda row, text, tools: judge(row, text, tools, kind),
        runs_code=True,
    )  # fmt: skip


def judge(row: Row, text: str, tools: Tools, language: str) -> Judgement:
    """Whether every test passes; a completion without a character is unparseable."""
    body, whole = completion(text, row["prompt"])
    if not body.strip():
        return Judgement(0.0, None)
    if language != "python":
        code = programs.joined(row["prompt"], body, whole, language)
        return run_parted(code, row["prompt"], row["test"], language, tools)
    entry = row.get("entry_point") or re.findall(r"^def (\w+)", row["prompt"], re.MULTILINE)[-1]
    code = f"{_imports(row['prompt'])}\n{body}" if whole else f"{row['prompt']}{body}\n"
    tests = f"{row['test']}\ncheck({entry})\n" if "entry_point" in row else row["test"]
    return run_code(code, tests, tools, entry=entry, context=row["prompt"])


def _imports(prompt: str) -> str:
    """Import lines of the prompt, which a rewritten function may need."""
    return "\n".join(re.findall(r"^(?:from|import) .+$", prompt, re.MULTILINE))
