r"""Conversations to tokens and loss mask, by the one renderer (report section 5.1; field cases F20, F21, F27, F30).

One object a line: {"messages": [...], "tools": [...]}, OpenAI's form; reasoning as `reasoning_content`, or at the start of the content
between <think> and </think>. An assistant's message with "weight": 0 is read and not learned.

Learned is what the assistant writes itself, its end token always, `<|Assistant|>` never. The mask comes from the renderer's pieces; no
text is searched. A prompt shows past turns without their reasoning, so a conversation with several reasoned answers becomes one sample
for each: every answer is learned behind exactly the prompt that will ask for it, and no target loses its reasoning. What cannot be used
is counted by reason and listed with its line number.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rorqual.checkpoint import folder as folders
from rorqual.errors import DataError
from rorqual.posttrain.sft_config import RenderConfig
from rorqual.tokenizer import chat, special
from rorqual.tokenizer.bpe import Tokenizer

FORMAT = 1
SHOWN_LINES = 20


@dataclass(frozen=True)
class Sample:
    """Ids of one sample and for each whether it is learned."""

    ids: list[int]
    learned: list[bool]


@dataclass
class DataReport:
    """What became of every line; `rejected` has, for each reason, how many samples and the first line numbers."""

    lines: int = 0
    samples: int = 0
    tokens: int = 0
    targets: int = 0
    truncated: int = 0
    rejected: dict[str, dict[str, Any]] = field(default_factory=dict)

    def reject(self, reason: str, line: int) -> None:
        """Counts a sample that is left out."""
        entry = self.rejected.setdefault(reason, {"count": 0, "lines": []})
        entry["count"] += 1
        if len(entry["lines"]) < SHOWN_LINES:
            entry["lines"].append(line)

    def summary(self) -> str:
        """A sentence, and a line for each reason."""
        left_out = sum(entry["count"] for entry in self.rejected.values())
        first = f"{self.samples:,} samples of {self.lines:,} lines, {self.tokens:,} tokens, {self.targets:,} of them learned"
        more = f"; {self.truncated:,} shortened" if self.truncated else ""
        listed = [f"  left out {entry['count']:,}: {reason} (line {', '.join(map(str, entry['lines'][:5]))}{', ...' if entry['count'] > 5 else ''})"
                  for reason, entry in sorted(self.rejected.items(), key=lambda item: -item[1]["count"])]  # fmt: skip
        return "\n".join([f"{first}{more}" + (f"; {left_out:,} left out" if left_out else ""), *listed])


class Samples:
    """All samples in one array, on the disk where there are many: a learned id as it is, any other as its complement."""

    def __init__(self, codes: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        self.codes, self.offsets = codes, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def places(self, number: int) -> int:
        """Tokens that the model reads of a sample: all but the last."""
        return int(self.offsets[number + 1] - self.offsets[number]) - 1

    def all_places(self) -> NDArray[np.int64]:
        """`places` of every sample."""
        return np.diff(self.offsets) - 1

    def read(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(ids, learned) of a sample."""
        codes = np.asarray(self.codes[self.offsets[number] : self.offsets[number + 1]], dtype=np.int64)
        return np.where(codes < 0, ~codes, codes), codes >= 0

    def fingerprint(self) -> str:
        """Changes with any token, mask or order."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.offsets).tobytes(), digest_size=16)
        for start in range(0, len(self.codes), 1 << 22):
            digest.update(np.ascontiguousarray(self.codes[start : start + (1 << 22)]).tobytes())
        return digest.hexdigest()


# ---------------------------------------------------------------------- one conversation


class _Unusable(DataError):
    """A sample that is left out; the message is the reason that is counted."""


def samples_of(raw: object, tokenizer: Tokenizer, config: RenderConfig) -> Iterator[Sample]:
    """The samples of one decoded line. DataError says what is wrong with it; nothing is yielded before all of it was looked at."""
    if not isinstance(raw, Mapping):
        raise _Unusable(f"a {type(raw).__name__} where an object was expected")
    messages = raw.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise _Unusable("no list of messages")
    tools = raw.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (json.JSONDecodeError, RecursionError):
            raise _Unusable("tools is a text that is not JSON") from None
    if tools is not None and not isinstance(tools, list):
        raise _Unusable("tools is no list")
    turns = [_settled(message, at) for at, message in enumerate(messages)]
    while turns and turns[-1]["role"] != "assistant":  # nobody answers these
        turns.pop()
    if not turns:
        raise _Unusable("no assistant message to learn from")
    yield from [_rendered(turns[:end], learned, tokenizer, tools, config) for end, learned in _parts(turns, config.style)]


def _settled(message: object, at: int) -> dict[str, Any]:
    """The message in the renderer's form, with the reasoning of an assistant taken out of its content."""
    one = chat.check_message(message, at)
    one["learn"] = not isinstance(message, Mapping) or message.get("weight", 1) != 0
    if one["role"] != "assistant":
        return one
    text = one["content"].lstrip()
    if text.startswith(special.THINK_BEGIN):
        reasoning, closed, content = text[len(special.THINK_BEGIN) :].partition(special.THINK_END)
        if not closed:
            raise _Unusable(f"an assistant's {special.THINK_BEGIN} that is never closed")
        if one["reasoning"]:
            raise _Unusable("reasoning both in reasoning_content and in the content")
        one |= {"reasoning": reasoning, "content": content.lstrip("\n")}
    one["reasoning"] = one["reasoning"].strip("\n")
    if special.THINK_END in one["reasoning"] or (one["reasoning"] and special.THINK_END in one["content"]):
        raise _Unusable(f"{special.THINK_END} more than once in an answer")
    if one["learn"] and not one["content"].strip() and not one["tool_calls"]:
        raise _Unusable("an empty assistant turn")
    return one


def _parts(turns: Sequence[Mapping[str, Any]], style: str) -> Iterator[tuple[int, set[int]]]:
    """(number of messages to render, numbers of the assistant turns to learn there) of each sample.

    An exchange is a user's message with all that follows it up to the next. Its answers look the same in a later prompt unless they
    were reasoned, or the style puts an empty reasoning block before them (r1): those are learned in a sample that ends with them.
    """
    starts = [at for at, turn in enumerate(turns) if turn["role"] == "user" and at > 0] or [0]
    bounds = sorted({0, *starts, len(turns)})
    together: set[int] = set()
    count = 0
    for begin, end in zip(bounds, bounds[1:], strict=False):
        answers = [turn for turn in turns[begin:end] if turn["role"] == "assistant"]
        numbers = {count + at for at, turn in enumerate(answers) if turn["learn"]}
        count += len(answers)
        alone = style == "r1" or any(turn["reasoning"] for turn in answers)
        if end == len(turns):
            yield end, together | numbers
        elif alone and numbers:
            yield end, numbers
        else:
            together |= numbers


def _rendered(
    turns: Sequence[Mapping[str, Any]], learn: set[int], tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] | None, config: RenderConfig
) -> Sample:  # fmt: skip
    last_user = max((at for at, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    thinking = any(turn["reasoning"] for turn in turns[last_user + 1 :])
    messages = [_message(turn) for turn in turns]
    made = chat.render(messages, tokenizer, tools=tools, add_generation_prompt=False, style=config.style, thinking=thinking)
    learned = [False] * len(made.ids)
    turn = 0
    for piece in made.pieces:
        if (
            piece.role == "assistant"
            and piece.kind != "control"
            and turn in learn
            and (config.reasoning_in_loss or piece.kind != "reasoning")
        ):
            learned[piece.start : piece.end] = [True] * (piece.end - piece.start)
        turn += piece.kind == "end"
    return Sample(made.ids, learned)


def _message(turn: Mapping[str, Any]) -> dict[str, Any]:
    """Back in OpenAI's form."""
    calls = [{"type": call["type"], "function": {"name": call["name"], "arguments": call["arguments"]}} for call in turn["tool_calls"]]
    made = {"role": turn["role"], "content": turn["content"]}
    if turn["reasoning"]:
        made["reasoning_content"] = turn["reasoning"]
    return made | ({"tool_calls": calls} if calls else {})


def fitted(sample: Sample, config: RenderConfig) -> tuple[Sample, bool]:
    """(the sample within the longest length, whether it was shortened). DataError where it is too long, or has nothing to learn."""
    shortened = len(sample.ids) - 1 > config.max_tokens
    if shortened:
        if config.over_long == "drop":
            raise _Unusable(f"longer than {config.max_tokens} tokens")
        sample = Sample(sample.ids[: config.max_tokens + 1], sample.learned[: config.max_tokens + 1])
    if not any(sample.learned[1:]):
        raise _Unusable("no token to learn" + (f" within {config.max_tokens} tokens" if shortened else ""))
    return sample, shortened


# ---------------------------------------------------------------------- a file


def read_lines(path: Path, tokenizer: Tokenizer, config: RenderConfig, report: DataReport) -> Iterator[tuple[int, Sample | str]]:
    """(line number, sample or the reason why it is left out), counted in `report`. DataError for a file that cannot be read."""
    chat.render(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], tokenizer, style=config.style
    )  # its control tokens are there
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                report.lines += bool(line.strip())
                for one in _of_line(line, number, tokenizer, config, report):
                    yield number, one
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give a file of JSON lines") from error


def _of_line(line: bytes, number: int, tokenizer: Tokenizer, config: RenderConfig, report: DataReport) -> Iterator[Sample | str]:
    if not line.strip():
        return
    try:
        found = list(samples_of(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8")), tokenizer, config))
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        report.reject(reason, number)
        yield reason
        return
    for sample in found:
        try:
            sample, shortened = fitted(sample, config)
        except DataError as error:
            report.reject(str(error), number)
            yield str(error)
            continue
        report.samples, report.truncated = report.samples + 1, report.truncated + shortened
        report.tokens, report.targets = report.tokens + len(sample.ids), report.targets + sum(sample.learned[1:])
        yield sample


def _reason(error: Exception) -> str:
    """What is counted: the error without the numbers and values of one line."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8"
    if isinstance(error, (json.JSONDecodeError, RecursionError)):
        return "not JSON"
    if isinstance(error, _Unusable):
        return str(error)
    return re.sub(r"\[\d+\]", "", re.sub(r" \(.*?\) (?=must)", " ", str(error), flags=re.DOTALL)).partition(";")[0][:150]


def encode_file(
    path: str | Path, tokenizer: Tokenizer, config: RenderConfig, out: str | Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Samples, DataReport]:  # fmt: skip
    """Renders a file into folder `out` (samples.bin, offsets.npy, rejected.jsonl, index.json) and opens it; a second call finds it there.

    `progress` gets (bytes done, bytes in all). DataError where nothing can be used.
    """
    path, out = Path(path), Path(out)
    key = {"format": FORMAT, "data": _digest(path), "tokenizer": tokenizer.fingerprint, "render": asdict(config)}
    if not (out / "index.json").is_file() or json.loads((out / "index.json").read_text(encoding="utf-8")).get("key") != key:
        with folders.new_folder(out, replace=True) as partial:
            report = _write(path, tokenizer, config, partial, progress)
            folders.write_json(partial / "index.json", {"key": key, "report": asdict(report)})
    return open_samples(out)


def open_samples(folder: Path) -> tuple[Samples, DataReport]:
    """What `encode_file` wrote."""
    report = DataReport(**json.loads((folder / "index.json").read_text(encoding="utf-8"))["report"])
    return Samples(np.memmap(folder / "samples.bin", dtype=np.int32, mode="r"), np.load(folder / "offsets.npy")), report


def _write(path: Path, tokenizer: Tokenizer, config: RenderConfig, folder: Path, progress: Callable[[int, int], None] | None) -> DataReport:
    report, offsets = DataReport(), array("q", [0])
    size, every = path.stat().st_size if path.is_file() else 0, 0
    with (folder / "samples.bin").open("wb") as codes, (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
        for number, one in read_lines(path, tokenizer, config, report):
            if isinstance(one, str):
                rejected.write(json.dumps({"line": number, "reason": one}, ensure_ascii=False) + "\n")
                continue
            ids = np.array(one.ids, dtype=np.int32)
            codes.write(np.where(one.learned, ids, ~ids).astype(np.int32).tobytes())
            offsets.append(offsets[-1] + len(ids))
            every += 1
            if progress is not None and every % 500 == 0:
                progress(min(size, int(size * number / max(report.lines, 1))), size)
    if not report.samples:
        raise DataError(f"{path} holds nothing to learn from: {report.summary()}")
    np.save(folder / "offsets.npy", np.array(offsets, dtype=np.int64))
    return report


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; give a file of JSON lines") from error
    return digest.hexdigest()


def describe(sample: Sample, tokenizer: Tokenizer, marks: tuple[str, str] = ("[", "]")) -> str:
    """The sample as text, each learned stretch between the marks: what a person checks before a run.

    Text that reads like a control token and is none has a backslash in front.
    """
    names = {number: name for name, number in tokenizer.added_tokens.items()}
    alike = re.compile("|".join(map(re.escape, names.values())) or r"(?!)")

    def spelled(ids: Sequence[int]) -> str:
        parts, first = [], 0
        for place in [*(at for at, number in enumerate(ids) if number in names), len(ids)]:
            parts.append(alike.sub(lambda found: f"\\{found[0]}", tokenizer.decode(ids[first:place])))
            parts += [names[number] for number in ids[place : place + 1]]
            first = place + 1
        return "".join(parts)

    out, at = [], 0
    while at < len(sample.ids):
        end = at
        while end < len(sample.ids) and sample.learned[end] == sample.learned[at]:
            end += 1
        text = spelled(sample.ids[at:end])
        out.append(f"{marks[0]}{text}{marks[1]}" if sample.learned[at] else text)
        at = end
    return "".join(out)
