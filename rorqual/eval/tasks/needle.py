"""Needle in a haystack: a sentence with a number at a given depth of a long text, then the question for it (report section 4.3, figure 8). No torch.

The haystack is any text, cut to a length in words; a depth of 0 puts the needle first, 100 last. Each (length, depth) is an item, with a
number that depends on both alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rorqual.errors import DataError
from rorqual.eval.task import GenerationTask, Judgement, Row, Tools
from rorqual.eval.tasks.numbers import last_number, same_number

LENGTHS = (250, 500, 1000, 2000)
DEPTHS = (0, 25, 50, 75, 100)


def task(name: str) -> GenerationTask:
    """`needle` at the default lengths and depths; a JSON task file names others."""
    return made(name, ("needle/haystack.txt", "tinyshakespeare/input.txt"), LENGTHS, DEPTHS)


def made(name: str, files: tuple[str, ...], lengths: Sequence[int], depths: Sequence[float]) -> GenerationTask:
    """The task over these lengths in words and depths in percent."""
    return GenerationTask(
        name=name, version=1, files=files, form="a UTF-8 text of at least the longest length in words", fields=(), shots=0,
        read=lambda path: haystacks(path, lengths, depths), row_id="id", question=lambda row: row["prompt"], answer=lambda row: row["number"],
        stop=("\n", "."), max_tokens=16, judge=judge, group=lambda row: f"{row['words']} words, depth {row['depth']:g}",
    )  # fmt: skip


def haystacks(path: Path, lengths: Sequence[int], depths: Sequence[float]) -> list[Row]:
    """One row per length and depth."""
    try:
        words = path.read_bytes().decode("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error})") from None
    if len(words) < max(lengths):
        raise DataError(f"{path} has {len(words)} words, the longest haystack needs {max(lengths)}; give a longer text")
    if any(not 0 <= depth <= 100 for depth in depths) or min(lengths) < 1:
        raise DataError(f"depths {list(depths)} must be from 0 to 100 and lengths {list(lengths)} at least 1")
    out = []
    for length in lengths:
        for depth in depths:
            number = str(
                int.from_bytes(hashlib.blake2b(f"{length}:{depth:g}".encode(), digest_size=4).digest(), "big") % 9_000_000 + 1_000_000
            )
            place = round(length * depth / 100)
            text = " ".join([*words[:place], f"The secret number of the whale is {number}.", *words[place:length]])
            prompt = f"{text}\n\nQuestion: What is the secret number of the whale?\nAnswer: The secret number of the whale is"
            out.append({"id": f"{length}:{depth:g}", "prompt": prompt, "number": number, "words": length, "depth": depth})
    return out


def judge(row: Row, text: str, tools: Tools) -> Judgement:
    """The number of the answer must be the needle's."""
    number = last_number(text)
    return Judgement(0.0, None) if number is None else Judgement(float(same_number(number, row["number"])), number)
