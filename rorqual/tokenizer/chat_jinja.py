"""Chat templates that write what the renderer writes, for folders of ours that other programs load (tokenizer.chat).

Jinja text for system, user and assistant messages in each style; tools are refused, since only the renderer keeps their text apart
from control tokens. `templates.style_of` knows each of them again.
"""

from __future__ import annotations

from typing import Final

from rorqual.tokenizer import special
from rorqual.tokenizer.chat import STYLES

_SYSTEM: Final = (
    "{%- if tools %}{{ raise_exception('this template has no form for tools') }}{% endif -%}"
    "{%- set ns = namespace(system=[]) -%}"
    "{%- for m in messages if m['role'] in ('system', 'developer') -%}"
    "{%- set ns.system = ns.system + [m['content'] or ''] -%}"
    "{%- endfor -%}"
    f"{{{{ '{special.BOS}' + ns.system | join('\\n\\n') }}}}"
)
_TURNS: Final = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}"
    f"{{{{ '{special.USER}' + m['content'] }}}}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{%- if m['tool_calls'] %}{{ raise_exception('this template has no form for tool calls') }}{% endif -%}"
    "{%- set text = m['content'] or '' -%}"
    f"{{%- if '{special.THINK_END}' in text and text.lstrip().startswith('{special.THINK_BEGIN}') -%}}"
    f"{{%- set text = text.split('{special.THINK_END}', 1)[1].lstrip('\\n') -%}}"
    "{%- endif -%}"
    "ANSWER"
    "{%- elif m['role'] == 'tool' -%}"
    "{{ raise_exception('this template has no form for tool outputs') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
_PLAIN: Final = f"{{{{ '{special.ASSISTANT}' + text + '{special.EOS}' }}}}"
_CLOSED: Final = f"{{{{ '{special.ASSISTANT}' }}}}{{{{ '{special.THINK_END}' + text + '{special.EOS}' }}}}"
_OPENINGS: Final = {
    "v3": f"{{{{ '{special.ASSISTANT}' + ('{special.THINK_BEGIN}\\n' if thinking else '') }}}}",
    "r1": (
        "{%- if thinking is defined and not thinking -%}"
        f"{{{{ '{special.ASSISTANT}{special.THINK_BEGIN}\\n\\n{special.THINK_END}\\n\\n' }}}}"
        f"{{%- else -%}}{{{{ '{special.ASSISTANT}{special.THINK_BEGIN}\\n' }}}}{{%- endif -%}}"
    ),
    "v3.1": (
        f"{{{{ '{special.ASSISTANT}' }}}}{{%- if thinking -%}}{{{{ '{special.THINK_BEGIN}' }}}}"
        f"{{%- else -%}}{{{{ '{special.THINK_END}' }}}}{{%- endif -%}}"
    ),
}


def chat_template(style: str) -> str:
    """The template of a style, `v3`, `r1` or `v3.1`; it takes `messages`, `add_generation_prompt` and `thinking`."""
    if style not in STYLES:
        raise ValueError(f"style ({style!r}) must be one of {', '.join(STYLES)}")
    turns = _TURNS.replace("ANSWER", _CLOSED if style == "v3.1" else _PLAIN)
    return f"{_SYSTEM}{turns}{{%- if add_generation_prompt -%}}{_OPENINGS[style]}{{%- endif -%}}"
