"""The command `rorqual`: finds the verb, imports its module and no other, and turns errors meant for the user into one message.

Each verb is a module of this folder with `main(argv) -> int`; the first line of its docstring is its line in `rorqual --help`,
read from the source without importing it, so that help costs no torch. Exit codes: 0 done, 1 an error of ours told in one
message, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rorqual.errors import RorqualError

VERBS: dict[str, tuple[str, ...]] = {
    "The whole recipe": ("run",),
    "Step by step": ("data build", "tokenizer train", "pretrain", "generate", "export"),
    "Serve": ("serve", "chat"),
    "Tune": ("distill", "sft", "reward-model", "grpo"),
    "Judge": ("eval",),
    "Look and reckon": ("inspect", "doctor", "plan", "simulate"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the verb that `argv` (by default the process's arguments) names; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if (
        "OMP_WAIT_POLICY" not in os.environ
    ):  # read when torch loads its threads: wait a little for a core, then give it up to other programs
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        return _dispatch(argv)
    except RorqualError as error:
        print(f"rorqual: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left, as in `rorqual inspect DIR | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"rorqual {version()}")
        return 0
    modules = sorted({verb.split()[0] for verbs in VERBS.values() for verb in verbs})
    if argv[0] not in modules:
        close = [name for name in modules if name.startswith(argv[0])] or difflib.get_close_matches(argv[0], modules, n=1)
        hint = f"did you mean `rorqual {close[0]}`?" if close else f"there are {', '.join(modules)}"
        print(f"rorqual: {argv[0]!r} is no verb; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"rorqual.cli.{argv[0].replace('-', '_')}")
    return int(module.main(argv[1:]) or 0)


def _help() -> str:
    lines = ["rorqual VERB ...: the DeepSeek-V3 system on one machine; `rorqual VERB --help` shows a verb's options", ""]
    for group, verbs in VERBS.items():
        lines.append(f"{group}:")
        lines += [f"  {verb:<16} {_summary(verb)}" for verb in verbs]
        lines.append("")
    return "\n".join(lines) + "\nStart with `rorqual run laptop`, or with `rorqual doctor` to see what this machine can do."


def _summary(verb: str) -> str:
    source = Path(__file__).with_name(f"{verb.split()[0].replace('-', '_')}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return docstring.partition("\n")[0].rstrip(".")


def version() -> str:
    """The installed package's version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rorqual")
    except PackageNotFoundError:
        return "(not installed: run from its source folder)"
