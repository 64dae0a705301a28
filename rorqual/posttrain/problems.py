"""Questions with what it takes to judge an answer: from JSON lines, or from reasoning-gym's generators that can be trusted.

One object a line, in any of these forms:

    {"messages": [{"role": "user", "content": "..."}], "answer": "42", "kind": "math"}
    {"prompt": "...", "answer": "(B)", "kind": "choice"}            # "question" or "problem" instead of "prompt" too
    {"prompt": "...", "tests": ["assert add(1, 2) == 3"], "kind": "code"}
    HumanEval.jsonl.gz and mbpp.jsonl as published                  # lines with prompt, test, entry_point; with text, code, test_list

kind: "math" (default where there is an answer), "choice", "code" (default where there are tests), "exact", "reasoning_gym", or "none" for what
only a model can judge. A line that cannot be used is counted by reason, with its number; nothing is silently left out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rorqual.errors import ConfigError, DataError, MissingExtraError, RorqualError
from rorqual.eval.grade import entry_of
from rorqual.tokenizer.chat import check_message

KINDS = ("math", "choice", "code", "exact", "reasoning_gym", "none")

# Generators whose scorer gave gold 1 and five wrong answers 0, does not evaluate the answer, and takes under 50 ms (20 items of each).
ALLOWED_TASKS = tuple(
    "arc_1d base_conversion basic_arithmetic bf bitwise_arithmetic caesar_cipher chain_sum circuit_logic coin_flip count_bits count_primes "
    "course_schedule cryptarithm decimal_arithmetic decimal_chain_sum dice family_relationships game_of_life gcd group_anagrams gsm_symbolic "
    "isomorphic_strings jugs kakurasu knights_knaves lcm leg_counting letter_counting letter_jumble list_functions mahjong_puzzle mini_sudoku "
    "modulo_grid needle_haystack number_filtering number_format number_sorting palindrome_partitioning path_star pool_matrix products "
    "quantum_lock ransom_note rectangle_count rotate_matrix self_reference shortest_path simple_equations simple_geometry spell_backward "
    "string_manipulation string_splitting string_synthesis sudoku survo syllogism tower_of_hanoi word_ladder word_sequence_reversal "
    "word_sorting".split()
)


@dataclass(frozen=True)
class Problem:
    """A question. `answer` is the gold answer, `data` what else its kind needs (tests of code, the generator's entry)."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    answer: str | None = None
    kind: str = "none"
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """Text of the last user turn."""
        return next((str(m["content"]) for m in reversed(self.messages) if m["role"] == "user"), "")


@dataclass(frozen=True)
class Problems:
    """What a file gave: problems in its order, and how many lines were left out for which reason, with the first line of each."""

    items: list[Problem]
    rejected: dict[str, int]
    examples: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Changes with any question, answer, test of code or order: a resumed run must see the same."""
        digest = hashlib.blake2b(digest_size=16)
        for one in self.items:
            tests = [dict(one.data)] if one.kind == "code" else []
            digest.update(json.dumps([one.id, list(map(dict, one.messages)), one.answer, one.kind, *tests], sort_keys=True).encode())
        return digest.hexdigest()


def read_problems(path: str | Path) -> Problems:
    """Reads a file of JSON lines, gzipped where its name ends in .gz; DataError for a file that cannot be read or that holds no problem."""
    file = Path(path)
    try:
        content = file.read_bytes()
        lines = (gzip.decompress(content) if file.name.endswith(".gz") else content).split(b"\n")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}; give a file of JSON lines") from error
    items: list[Problem] = []
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    seen: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            problem = problem_of(raw)
            if problem.id in seen:
                raise DataError("the same id or question again")
            seen.add(problem.id)
            items.append(problem)
        except (ValueError, RecursionError, RorqualError) as error:
            reason = (
                "not UTF-8"
                if isinstance(error, UnicodeDecodeError)
                else "not JSON"
                if isinstance(error, json.JSONDecodeError)
                else str(error)
            )
            reason = reason if len(reason) <= 120 else reason[:117] + "..."
            rejected[reason] += 1
            examples.setdefault(reason, f"{file}:{number}")
    if not items:
        why = "; ".join(f"{count} x {reason} ({examples[reason]})" for reason, count in rejected.most_common(3)) or "it is empty"
        raise DataError(f"{file} holds no problem that can be used: {why}")
    return Problems(items, dict(rejected), examples)


def problem_of(raw: object) -> Problem:
    """One problem out of a decoded line; DataError says what is wrong with it."""
    if not isinstance(raw, Mapping):
        raise DataError(f"a {type(raw).__name__} where an object was expected")
    raw = _published(raw)
    messages = raw.get("messages")
    if messages is None:
        prompt = next((raw[name] for name in ("prompt", "question", "problem") if name in raw), None)
        messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise DataError("no messages and no prompt")
    for at, message in enumerate(messages):
        check_message(message, at)
    if messages[-1].get("role") not in ("user", "tool") or not messages[-1].get("content"):
        raise DataError("the last message must be a user's, with text")
    answer = raw.get("answer", raw.get("gold"))
    if isinstance(answer, (int, float)) and not isinstance(answer, bool):
        answer = str(answer)
    if answer is not None and not isinstance(answer, str):
        raise DataError(f"answer is a {type(answer).__name__}, must be text or a number")
    if answer is not None and "####" in answer:  # GSM8K: the worked solution, then the number
        answer = answer.rpartition("####")[2].strip()
    kind = raw.get("kind") or ("code" if raw.get("tests") else "math" if answer else "none")
    if kind not in KINDS:
        raise DataError(f"kind ({kind!r}) must be one of {', '.join(KINDS)}")
    if kind == "code" and not raw.get("tests"):
        raise DataError("kind 'code' needs tests")
    tests = raw.get("tests") or ""
    if not isinstance(tests, str) and not (isinstance(tests, list) and all(isinstance(one, str) for one in tests)):
        raise DataError("tests must be text or a list of texts")
    if kind in ("math", "choice", "exact") and not (answer and answer.strip()):
        raise DataError(f"kind {kind!r} needs an answer")
    known = {"messages", "prompt", "question", "problem", "answer", "gold", "kind", "id"}
    data = {name: value for name, value in raw.items() if name not in known}
    number = raw.get("id")
    text = json.dumps(list(map(dict, messages)), sort_keys=True, ensure_ascii=False, default=str)
    name = str(number) if number is not None else hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return Problem(name, tuple(dict(m) for m in messages), answer, str(kind), data)


def _published(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line of HumanEval or MBPP as a problem of this file, with the reference in `solution`; any other line as it is.

    The question asks for a whole program in a fence, which is what the reward runs; MBPP's shows three tests, as its authors do.
    """
    if "tests" in raw or "messages" in raw:
        return raw
    if all(isinstance(raw.get(name), str) for name in ("prompt", "test", "entry_point")):
        prompt, entry = raw["prompt"], raw["entry_point"]
        asked = f"Complete this Python function. Answer with the whole program, imports included, in one fenced block.\n\n```python\n{prompt}```"
        made = {"prompt": asked, "tests": f"{raw['test']}\ncheck({entry})\n", "entry_point": entry, "context": prompt}
        code = f"{prompt}{raw['canonical_solution']}" if isinstance(raw.get("canonical_solution"), str) else ""
    elif (
        isinstance(raw.get("text"), str)
        and isinstance(raw.get("test_list"), list)
        and all(isinstance(one, str) for one in raw["test_list"])
    ):
        tests = raw["test_list"]
        shown = "\n".join(tests[:3])
        asked = f"{raw['text']} Answer with one fenced block of Python that passes these tests:\n\n```python\n{shown}\n```"
        code = raw["code"] if isinstance(raw.get("code"), str) else ""
        more = raw.get("challenge_test_list")
        whole = [str(raw.get("test_setup_code") or ""), *tests, *map(str, more if isinstance(more, list) else [])]
        made = {"prompt": asked, "tests": [one for one in whole if one], "entry_point": entry_of(code, "\n".join(whole))}
    else:
        return raw
    return {"id": raw.get("task_id"), "kind": "code", **made, **({"solution": f"```python\n{code.rstrip()}\n```"} if code else {})}


def generate_problems(tasks: Sequence[str], size: int, seed: int) -> Problems:
    """`size` problems of each reasoning-gym task, the tasks in turns. ConfigError for a task whose scorer cannot be trusted."""
    unknown = [task for task in tasks if task not in ALLOWED_TASKS]
    if unknown or not tasks:
        raise ConfigError(
            f"tasks ({', '.join(unknown) or 'none'}) must be of reasoning-gym's trusted ones: {', '.join(ALLOWED_TASKS)}; "
            "the others give credit to wrong answers or evaluate the model's text"
        )
    try:
        import reasoning_gym  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise MissingExtraError("--tasks", "reasoning-gym", "eval") from None
    sets = [reasoning_gym.create_dataset(task, size=size, seed=seed) for task in tasks]
    items = []
    for at in range(size):
        for task, made in zip(tasks, sets, strict=True):
            entry = made[at]
            messages = ({"role": "user", "content": str(entry["question"])},)
            items.append(Problem(f"{task}-{seed}-{at}", messages, str(entry["answer"]), "reasoning_gym", {"task": task, "entry": entry}))
    return Problems(items, {}, {})
