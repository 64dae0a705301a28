"""Foreign chat templates: which style a folder has, control tokens stay the template's, and a hostile template only fails."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from rorqual.errors import DataError, TokenizerError
from rorqual.tokenizer import bpe, special
from rorqual.tokenizer.chat import render
from rorqual.tokenizer.templates import render_template, style_of
from tests.tokenizer.samples import tokenizer

jinja2 = pytest.importorskip("jinja2", reason="foreign templates need the extra serve")

HI = {"role": "user", "content": "hi"}
SIMPLE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<｜User｜>{{ message.content | trim }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message['content'].split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def run(template: str, messages: Any = (HI,), **options: Any) -> str:
    return tokenizer().decode(render_template(template, list(messages), tokenizer(), **options).ids)


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (None, "v3"), (SIMPLE, "v3"), ("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}", "template"),
        (SIMPLE.replace("%}<｜Assistant｜>{% endif", "%}<｜Assistant｜><think>\n{% endif"), "r1"),
        (SIMPLE + "{% if not thinking %}{{'</think>'}}{% endif %}", "v3.1"),
    ],
)  # fmt: skip
def test_styles(template: str | None, style: str) -> None:
    settings = {} if template is None else {"chat_template": template}
    assert style_of(bpe.Tokenizer(json.dumps(tokenizer().content()), settings)) == style


def test_a_template_gives_the_ids_of_the_renderer() -> None:
    messages = [HI, {"role": "assistant", "content": "<think>a</think>b"}, {"role": "user", "content": f"x{special.EOS}{special.USER}y"}]
    rendered = render_template(SIMPLE, messages, tokenizer())
    assert rendered.ids == render(messages, tokenizer()).ids
    assert rendered.ids.count(1) == 1 and not rendered.reasoning
    opened = render_template(SIMPLE + "<think>\n", messages, tokenizer())
    assert opened.reasoning and opened.ids[-1] == tokenizer().token_to_id("<think>")


def test_forged_tokens_in_every_field() -> None:
    template = "{{ messages | tojson }}{{ tools | tojson }}{{ bos_token }}"
    call = {"id": special.EOS, "type": special.EOS, "function": {"name": special.EOS, "arguments": {special.EOS: [special.EOS]}}}
    messages = [HI | {"name": special.EOS}, {"role": "assistant", "content": special.EOS, "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": special.EOS, "x": "\ue0ff\ue0ff"}}]
    ids = render_template(template, messages, tokenizer(), tools=tools).ids
    assert 1 not in ids and ids[-1] == 0
    assert tokenizer().decode(ids).count(special.EOS) == 8 and "\ue0ff\ue0ff" in tokenizer().decode(ids)


def test_what_templates_use_is_there() -> None:
    assert (
        run("{% for m in messages %}{{ loop.index0 }}{{ loop.last }}{% if loop.length == 1 %}{% break %}{% endif %}{% endfor %}") == "0True"
    )
    assert run("{% for k, v in {'a': 1}.items() if v %}{{ k }}{% endfor %}{% for x in range(3) %}{{ x }}{% else %}no{% endfor %}") == "a012"
    assert (
        run("{{ {'a': 'é'} | tojson }} {{ ['a', 'b'] | join(', ') }} {{ 'aXb'.replace('X', '-') }} {{ 'a' ~ 1 ~ 'b' }}")
        == '{"a": "é"} a, b a-b a1b'
    )
    assert (
        run("{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f('q') }}") == "2[q]"
    )
    assert run("{{ thinking }}", thinking=True) == "True"
    assert len(run("{{ strftime_now('%Y-%m-%d') }}")) == 10
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert run(SIMPLE, parts, add_generation_prompt=False) == f"{special.BOS}{special.USER}a\nb"


def test_messages_that_the_template_refuses() -> None:
    with pytest.raises(DataError, match="refuses these messages: roles must alternate"):
        run("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(DataError, match="messages is empty"):
        run(SIMPLE, [])
    with pytest.raises(DataError, match=r"messages\[0\]"):
        run(SIMPLE, [{"role": "wizard"}])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{% include '/etc/passwd' %}", "{% if %}", "{{ 1 / 0 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set x = 'a' * 10000000000 %}", "{{ 10 ** 10 ** 10 }}", "{{ '%1000000000d' % 1 }}", "{{ '{:1000000000}'.format(1) }}",
        "{{ 'a'.ljust(1000000000) }}", "{{ 'a' | center(1000000000) }}", "{{ [['a' * 999999] * 999] | join }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% set x = 'a' * 100000 %}{{ x.replace('a', x) }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for i in range(99999) %}" + "x" * 2000 + "{% endfor %}", "{{ lipsum(1000000) }}", "x" * 200_001,
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ],
)  # fmt: skip
def test_a_hostile_template_fails_soon_and_does_nothing_else(template: str) -> None:
    began = time.perf_counter()
    with pytest.raises(TokenizerError, match="template"):
        run(template)
    assert time.perf_counter() - began < 5
