"""Which chat style a folder has, and foreign chat templates, which are code from strangers: a Jinja sandbox with limits.

A template may loop, multiply text and call what it is given; each of these is bounded, so that a folder can make a request fail and
nothing worse. Text of a message that looks like a control token stays text here too: it is marked before the template runs and
encoded as text after it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NoReturn

from rorqual.errors import DataError, MissingExtraError, TokenizerError
from rorqual.tokenizer import special
from rorqual.tokenizer.bpe import Tokenizer
from rorqual.tokenizer.chat import Message, Piece, Rendered, check_message

MAX_TEMPLATE: Final = 200_000
"""Characters of a template."""
MAX_STEPS: Final = 200_000
"""Turns of all loops and calls of one rendering."""
MAX_OUTPUT: Final = 8_000_000
"""Characters of a rendered prompt."""
MAX_MADE: Final = 64_000_000
"""Characters of all texts that one rendering makes, those that it throws away included."""
_PADDING_FILTERS: Final = ("center", "indent", "wordwrap", "urlize", "xmlattr", "random", "pprint", "filesizeformat", "format")
_MARK: Final = "\ue0ff"


def style_of(tokenizer: Tokenizer) -> str:
    """`v3`, `r1` or `v3.1` for DeepSeek's own templates and for folders without one, `template` for any other."""
    template = tokenizer.chat_template
    if template is None:
        return "v3"
    if special.USER not in template or special.ASSISTANT not in template:
        return "template"
    if "thinking" in template and f"{special.ASSISTANT}" in template and re.search(r"\{\{-?\s*'</think>'", template):
        return "v3.1"
    return "r1" if f"{special.ASSISTANT}{special.THINK_BEGIN}" in template else "v3"


def render_template(
    template: str,
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    thinking: bool | None = None,
) -> Rendered:
    """The prompt that a foreign template makes. DataError for messages that it refuses, TokenizerError for a template that fails.

    The prompt is one piece of role and kind `template`: whose ids are whose is known to the template alone.
    """
    checked = [check_message(message, at) for at, message in enumerate(messages)]
    if not checked:
        raise DataError("messages is empty; give at least one")
    mark = _free_mark(messages, tools)
    tokens = _token_pattern(tuple(tokenizer.added_tokens))
    variables = {
        "messages": [_marked_message(original, own, tokens, mark) for original, own in zip(messages, checked, strict=True)],
        "tools": _marked(tools, tokens, mark) if tools else None,
        "add_generation_prompt": add_generation_prompt,
        "bos_token": _named(tokenizer, tokenizer.bos_id),
        "eos_token": _named(tokenizer, tokenizer.eos_id),
        "pad_token": _named(tokenizer, tokenizer.pad_id),
    }
    if thinking is not None:
        variables |= {"thinking": thinking, "enable_thinking": thinking}
    text = _run(template, variables)
    ids: list[int] = []
    for part, control in _parts(text, tokens):
        ids += [tokenizer.added_tokens[part]] if control else tokenizer.encode_text(part.replace(mark, ""))
    reasoning = text.rstrip().endswith(special.THINK_BEGIN)
    return Rendered(ids, [Piece("template", "template", 0, len(ids))], reasoning)


# ---------------------------------------------------------------------- the sandbox


def _run(template: str, variables: dict[str, Any]) -> str:
    try:
        import jinja2
        from jinja2.exceptions import SecurityError
    except ImportError:
        raise MissingExtraError("a chat template that is not DeepSeek's", "jinja2", "serve") from None
    if len(template) > MAX_TEMPLATE:
        raise TokenizerError(f"the chat template has {len(template)} characters; at most {MAX_TEMPLATE} are read")
    budget = _Budget()
    try:
        compiled = _compiled(budget, template)
        out, length = [], 0
        for part in compiled.generate(**variables):
            length += len(part)
            if length > MAX_OUTPUT:
                raise SecurityError(f"more than {MAX_OUTPUT} characters of output")
            out.append(part)
        return "".join(out)
    except DataError:
        raise
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise TokenizerError(f"the folder's chat template failed ({type(error).__name__}: {error}); correct chat_template.jinja") from None


class _Budget:
    """What one rendering may still do: turns of loops and calls, and characters of text that it makes on the way."""

    def __init__(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_MADE

    def spend(self, characters: int = 0) -> None:
        self.steps -= 1
        self.characters -= characters
        if self.steps < 0 or self.characters < 0:
            from jinja2.exceptions import SecurityError

            raise SecurityError(f"more than {MAX_STEPS} steps" if self.steps < 0 else f"more than {MAX_MADE} characters of text made")

    def turns(self, values: Iterable[Any], characters: int) -> list[Any]:
        """The values of a loop; each costs a step and the text of the loop's body."""
        out = []
        for value in values:
            self.spend(characters)
            out.append(value)
        return out

    def made(self, value: Any) -> Any:
        """A value that is put out or joined to others, as it is."""
        self.weigh(value)
        return value

    def weigh(self, value: Any) -> None:
        """Spends about the length of a value's text, before it is made."""
        if isinstance(value, Mapping):
            for key, item in value.items():
                self.weigh(key)
                self.weigh(item)
        elif isinstance(value, list | tuple | set | frozenset):
            for item in value:
                self.weigh(item)
        self.spend(len(value) if isinstance(value, str) else 64)

    def to_json(self, value: Any, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
        """Filter `tojson`, which leaves text as it is."""
        self.weigh(value)
        indent = min(indent, 16) if indent else indent
        return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)

    def joined(self, values: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
        """Jinja's filter `join`, without its rarer options."""
        parts = []
        for value in values:
            chosen = value if attribute is None else value[attribute]
            self.weigh(chosen)
            self.spend(len(str(between)))
            parts.append(str(chosen))
        return str(between).join(parts)

    def replaced(self, text: Any, old: Any, new: Any, count: int = -1) -> str:
        """Filter and method `replace`."""
        whole, old, new = str(text), str(old), str(new)
        self.spend(len(whole) + whole.count(old) * len(new))
        return whole.replace(old, new, -1 if count is None else count)


def _compiled(budget: _Budget, template: str) -> Any:
    """The template, every loop, output and call of which spends from the budget."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    def filtered(node: Any, name: str, *values: int) -> Any:
        return nodes.Filter(node, name, [nodes.Const(value) for value in values], [], None, None, lineno=node.lineno)

    class Counting(NodeTransformer):
        """Puts the budget's filters around what can make work or text."""

        def visit_For(self, node: Any) -> Any:
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            self.generic_visit(node)
            node.iter = filtered(node.iter, "_turns", text)
            return node

        def visit_Output(self, node: Any) -> Any:
            self.generic_visit(node)
            node.nodes = [part if isinstance(part, nodes.TemplateData) else filtered(part, "_made") for part in node.nodes]
            return node

        def visit_Concat(self, node: Any) -> Any:
            self.generic_visit(node)
            node.nodes = [filtered(part, "_made") for part in node.nodes]
            return node

    class Sandbox(ImmutableSandboxedEnvironment):
        """Jinja's sandbox, with bounds on calls and on what operators make."""

        intercepted_binops = frozenset(["*", "**", "%", "+"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            sizes = [len(value) if hasattr(value, "__len__") else 0 for value in (left, right)]
            numbers = [abs(int(value)) if isinstance(value, int | float) else 0 for value in (left, right)]
            budget.spend(sizes[0] * numbers[1] + sizes[1] * numbers[0] if operator == "*" else sum(sizes))
            if operator == "**" and (numbers[0] > 1000 or numbers[1] > 64) or operator == "%" and isinstance(left, str):
                raise SecurityError(f"the operator {operator} on these values")
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
            name, owner = getattr(obj, "__name__", ""), getattr(obj, "__self__", None)
            budget.spend(0 if owner is not None else own_text)
            if isinstance(owner, str):
                if name in ("format", "format_map", "center", "ljust", "rjust", "zfill", "expandtabs", "translate"):
                    raise SecurityError(f"the method {name}")
                if name == "join":
                    return budget.joined(args[0], owner)
                if name == "replace":
                    return budget.replaced(owner, *args)
                budget.spend(len(owner))
            return super().call(context, obj, *args, **kwargs)

    environment = Sandbox(optimized=False, trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in _PADDING_FILTERS:
        environment.filters.pop(name, None)
    for name in ("lipsum", "cycler", "joiner"):
        environment.globals.pop(name, None)
    environment.filters |= {
        "tojson": budget.to_json, "join": budget.joined, "replace": budget.replaced, "_turns": budget.turns, "_made": budget.made,
    }  # fmt: skip
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    tree = environment.parse(template)
    own_text = sum(len(data.data) for data in tree.find_all(nodes.TemplateData))
    return environment.from_string(Counting().visit(tree))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])


def _refuse(message: object) -> NoReturn:
    raise DataError(f"the chat template refuses these messages: {str(message)[:500]}")


# ---------------------------------------------------------------------- control tokens stay the template's


@lru_cache(maxsize=4)
def _token_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) or r"(?!)")


def _free_mark(*values: object) -> str:
    """A string of private-use characters that occurs in none of the values."""
    text, mark = json.dumps(values, ensure_ascii=False, default=str), _MARK
    while mark in text:
        mark += _MARK
    return mark


def _marked(value: Any, tokens: re.Pattern[str], mark: str) -> Any:
    """A copy in which every control token has the mark behind its first character."""
    if isinstance(value, str):
        return tokens.sub(lambda found: found[0][0] + mark + found[0][1:], value)
    if isinstance(value, Mapping):
        return {_marked(key, tokens, mark): _marked(item, tokens, mark) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(item, tokens, mark) for item in value]
    return value


def _marked_message(message: Message, own: dict[str, Any], tokens: re.Pattern[str], mark: str) -> dict[str, Any]:
    """Content as text, arguments as an object where they are JSON. An answer keeps its reasoning tags: templates cut there."""
    out: dict[str, Any] = {"role": own["role"], "content": own["content"]}
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            out[name] = message[name]
    if own["reasoning"]:
        out["reasoning_content"] = own["reasoning"]
    if own["tool_calls"]:
        given = message["tool_calls"]
        out["tool_calls"] = [
            {"id": str(call.get("id", "")), "type": one["type"], "function": {"name": one["name"], "arguments": _parsed(one["arguments"])}}
            for call, one in zip(given, own["tool_calls"], strict=True)
        ]
    marked: dict[str, Any] = _marked(out, tokens, mark)
    if own["role"] == "assistant":
        for tag in (special.THINK_BEGIN, special.THINK_END):
            marked["content"] = marked["content"].replace(tag[0] + mark + tag[1:], tag)
    return marked


def _parsed(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _parts(text: str, tokens: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """Pieces of text, and which of them are control tokens."""
    at = 0
    for found in tokens.finditer(text):
        if found.start() > at:
            yield text[at : found.start()], False
        yield found[0], True
        at = found.end()
    if at < len(text):
        yield text[at:], False


def _named(tokenizer: Tokenizer, number: int | None) -> str:
    return next((name for name, own in tokenizer.added_tokens.items() if own == number), "") if number is not None else ""
