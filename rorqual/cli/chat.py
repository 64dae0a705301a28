"""Talk to a model in the terminal; answers come as they are made.

rorqual chat runs/laptop
rorqual chat V3 --system "Be brief." --thinking
echo "What is 17 + 25?" | rorqual chat runs/laptop --temperature 0        # each line a message
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rorqual.cli.engine import add_options, open_engine
from rorqual.errors import ConfigError, DataError, RorqualError

if TYPE_CHECKING:
    from rorqual.inference.engine import Engine
    from rorqual.inference.params import SamplingParams
    from rorqual.server.served import Served

HELP = """/new        forget the conversation
/system T   set the system text (and forget the conversation)
/think      turn reasoning before the answer on or off
/retry      ask for the last answer again, with the next seed
/quit       leave (as does Ctrl-D); Ctrl-C stops an answer"""
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def main(argv: list[str]) -> int:
    """Runs the verb until the input ends; returns the exit code. Raises RorqualError for what cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="rorqual chat", description="Talk to a model of the DeepSeek-V3 family in the terminal. " + HELP.replace("\n", "; ")
    )
    add_options(parser)
    parser.add_argument("--system", default="", metavar="TEXT", help="system text before the conversation")
    parser.add_argument("--thinking", action="store_true", help="have answers reason first, where the model's chat style can")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the most likely token every time (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.95, help="draw from the fewest tokens that reach this probability (default: 0.95)")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="of an answer (default: what fits the context)")
    parser.add_argument("--seed", type=int, default=0, help="of the first answer's draws, one more for each next one (default: 0)")
    parser.add_argument("--stats", action="store_true", help="print counts and speed after every answer to standard error")
    args = parser.parse_args(argv)
    from rorqual.inference.params import SamplingParams

    params = SamplingParams(max_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, seed=args.seed)
    args.max_num_seqs = 1
    opened = open_engine(args)
    talk = Conversation(opened.engine, opened.served, params, args.system, args.thinking or None)
    if sys.stdin.isatty():
        print(f"{opened.served.name}, chat style {opened.served.style}; /help lists the commands", file=sys.stderr)
        _edit_lines()
    return _loop(talk, args.stats)


def _edit_lines() -> None:
    """Line editing and history of `input`, where Python has it."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)", file=sys.stderr)
        except UnicodeDecodeError:
            raise DataError("standard input is not UTF-8; correct its encoding") from None


def _loop(talk: Conversation, stats: bool) -> int:
    for line in _lines():
        word, _, rest = line.strip().partition(" ")
        match word:
            case "":
                continue
            case "/quit" | "/exit":
                break
            case "/help":
                print(HELP)
                continue
            case "/new":
                talk.forget()
                continue
            case "/system":
                talk.system = rest.strip()
                talk.forget()
                continue
            case "/think":
                talk.thinking = not talk.thinking
                print(f"reasoning {'on' if talk.thinking else 'off'}", file=sys.stderr)
                continue
            case "/retry":
                if not talk.take_back():
                    print("there is no answer yet", file=sys.stderr)
                    continue
            case _ if word.startswith("/"):
                print(f"{word} is no command; /help lists them", file=sys.stderr)
                continue
            case _:
                talk.messages.append({"role": "user", "content": line})
        _answer(talk, stats)
    return 0


def _answer(talk: Conversation, stats: bool) -> None:
    """One answer on the screen; what cannot be asked is told, and the question taken back."""
    from rorqual.inference.detokenize import printable

    terminal = sys.stdout.isatty()
    clean = printable if terminal else str
    dim = False  # inside the reasoning, which a terminal shows dim
    try:
        for kind, text in talk.answer():
            if (kind == "reasoning") != dim:
                dim = kind == "reasoning"
                sys.stdout.write(((_DIM if dim else _PLAIN) if terminal else "") + ("" if dim else "\n"))
            sys.stdout.write(clean(text))
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)
    except (DataError, ConfigError) as error:
        talk.messages.pop()
        print(f"rorqual: {error}" + ("; /new forgets the conversation" if len(talk.messages) > 1 else ""), file=sys.stderr)
        if not sys.stdin.isatty():
            raise RorqualError("the conversation cannot go on") from None
        return
    finally:
        sys.stdout.write((_PLAIN if terminal and dim else "") + "\n")
        sys.stdout.flush()
    if stats:
        print(talk.summary, file=sys.stderr)


class Conversation:
    """Messages so far and how the next answer is made; `summary` tells of the last one."""

    def __init__(self, engine: Engine, served: Served, params: SamplingParams, system: str = "", thinking: bool | None = None) -> None:
        self.engine, self.served, self.params, self.system, self.thinking = engine, served, params, system, thinking
        self.messages: list[dict[str, Any]] = []
        self.summary = ""
        self._answers = 0

    def forget(self) -> None:
        """Starts afresh; the system text stays."""
        self.messages = []

    def take_back(self) -> bool:
        """Drops the last answer, so that it can be made again; False if there is none."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return False
        self.messages.pop()
        return True

    def answer(self) -> Iterator[tuple[str, str]]:
        """("reasoning" or "content", text) as they come; the answer joins the messages, cut short or not.

        DataError or ConfigError when the conversation does not fit, or the model has no way to chat.
        """
        from dataclasses import replace

        from rorqual.tokenizer.parse import Answer, StreamParser

        rendered = self._render()
        engine, params = self.engine, replace(self.params, seed=self.params.seed + self._answers)
        parser = StreamParser(self.served.style, self.served.tokenizer, reasoning=rendered.reasoning)
        name, whole = f"answer {self._answers}", Answer()
        self._answers += 1
        before, began, tokens = engine.stats, time.perf_counter(), 0
        engine.add_request(name, rendered.ids, params)
        try:
            while engine.has_work:
                for output in engine.step():
                    ids = list(output.new_token_ids)
                    tokens += len(ids)
                    ended = output.finish_reason == "stop" and ids[-1] in self.served.stop_ids
                    events = parser.feed(ids[:-1] if ended else ids)
                    events += parser.finish() if output.finish_reason is not None else []
                    whole.add(events)
                    yield from ((one.kind, one.text) for one in events if one.kind in ("reasoning", "content"))
        finally:
            engine.abort(name)
            self.messages.append({"role": "assistant", "content": whole.content})
            seconds, drafts = time.perf_counter() - began, engine.stats.drafts - before.drafts
            accepted = engine.stats.accepted - before.accepted
            self.summary = f"{len(rendered.ids)} prompt tokens, {tokens} new ones, {tokens / max(seconds, 1e-9):.1f} tokens/s" + (
                f"; {accepted} of {drafts} drafts accepted" if drafts else ""
            )

    def _render(self) -> Any:
        from rorqual.errors import TokenizerError
        from rorqual.tokenizer import chat, templates

        messages = ([{"role": "system", "content": self.system}] if self.system else []) + self.messages
        tokenizer, style = self.served.tokenizer, self.served.style
        try:
            if style == "template":
                return templates.render_template(tokenizer.chat_template or "", messages, tokenizer, thinking=self.thinking)
            return chat.render(messages, tokenizer, style=style, thinking=self.thinking)  # type: ignore[arg-type]
        except TokenizerError as error:
            raise ConfigError(f"this model cannot chat: {error}") from None
