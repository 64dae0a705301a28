"""Edits of files in a model's answer: Aider's `whole` and `diff` formats. No torch.

    whole   a line with the file's name, then a fenced block with all of its new content
    diff    a line with the file's name, then blocks of  <<<<<<< SEARCH / old lines / ======= / new lines / >>>>>>> REPLACE

An answer is well formed if it has an edit, every edit is complete and names one of the files, and every searched text is in its file.
Nothing is written: the result is new contents.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SEARCH, _DIVIDER, _REPLACE = re.compile(r"<{5,9} SEARCH\s*$"), re.compile(r"={5,9}\s*$"), re.compile(r">{5,9} REPLACE\s*$")
_FENCE = re.compile(r"(`{3,})[\w+#.-]*\s*$")


@dataclass(frozen=True)
class Edited:
    """Contents after the edits, of all files; `problem` says why the answer is not well formed, "" if it is."""

    files: dict[str, str]
    problem: str = ""

    @property
    def well_formed(self) -> bool:
        """Whether every edit could be read and applied."""
        return not self.problem


def apply(answer: str, files: Mapping[str, str], form: str) -> Edited:
    """The edits of an answer in `form` ("whole" or "diff") on `files`; what can be applied is, also of an answer with a fault."""
    return (_whole if form == "whole" else _diff)(answer.split("\n"), dict(files))


def _named(line: str, files: Mapping[str, str]) -> str | None:
    """The file that a line names: its path, marks of headings and quotes around it dropped; a bare file name where only one has it."""
    text = line.strip().strip("*#`: ").strip()
    if text in files:
        return text
    same = [path for path in files if path.rpartition("/")[2] == text.rpartition("/")[2]]
    return same[0] if len(same) == 1 and text else None


def _whole(lines: list[str], files: dict[str, str]) -> Edited:
    problem, count, at = "", 0, 0
    while at < len(lines):
        opened = _FENCE.match(lines[at])
        if opened is None:
            at += 1
            continue
        end = next((n for n in range(at + 1, len(lines)) if lines[n].rstrip() == opened[1]), None)
        above = next((line for line in reversed(lines[max(0, at - 2) : at]) if line.strip()), "")
        name = _named(above, files) or (next(iter(files)) if len(files) == 1 and not _looks_like_path(above) else None)
        if end is None:
            problem = problem or "a block is not closed"
            break
        if name is None:
            if _looks_like_path(above):
                problem = problem or f"{above.strip()[:80]} is not one of the files that may be edited"
        else:
            files[name] = "\n".join(lines[at + 1 : end]) + "\n"
            count += 1
        at = end + 1
    return Edited(files, problem or ("" if count else "there is no edit"))


def _looks_like_path(line: str) -> bool:
    return re.fullmatch(r"[\w./-]+\.\w+", line.strip().strip("*#`: ")) is not None


def _diff(lines: list[str], files: dict[str, str]) -> Edited:
    problem, count, at, name = "", 0, 0, None
    while at < len(lines):
        named = _named(lines[at], files)
        if named is not None:
            name = named
        elif _looks_like_path(lines[at]):
            name = None
        if not _SEARCH.match(lines[at]):
            if _REPLACE.match(lines[at]):
                problem = problem or "a REPLACE stands without its SEARCH"
            at += 1
            continue
        middle = next((n for n in range(at + 1, len(lines)) if _DIVIDER.match(lines[n])), None)
        end = None if middle is None else next((n for n in range(middle + 1, len(lines)) if _REPLACE.match(lines[n])), None)
        if middle is None or end is None:
            problem = problem or "a block has no ======= or no REPLACE"
            break
        target = name or (next(iter(files)) if len(files) == 1 and name is None and not _path_above(lines, at) else None)
        if target is None:
            problem = problem or "a block names no file that may be edited"
        else:
            changed = _replaced(files[target], lines[at + 1 : middle], lines[middle + 1 : end])
            if changed is None:
                problem = problem or f"the searched lines are not in {target}"
            else:
                files[target] = changed
                count += 1
        at = end + 1
    return Edited(files, problem or ("" if count else "there is no edit"))


def _path_above(lines: list[str], at: int) -> bool:
    return any(_looks_like_path(line) for line in lines[max(0, at - 2) : at])


def _replaced(text: str, search: list[str], new: list[str]) -> str | None:
    """The first place where the lines stand, spaces at line ends aside; an empty search appends."""
    lines = text.split("\n")
    if not [line for line in search if line.strip()]:
        return (text if text.endswith("\n") or not text else text + "\n") + "\n".join(new) + ("\n" if new else "")
    wanted = [line.rstrip() for line in search]
    for start in range(len(lines) - len(wanted) + 1):
        if [line.rstrip() for line in lines[start : start + len(wanted)]] == wanted:
            return "\n".join([*lines[:start], *new, *lines[start + len(wanted) :]])
    return None
