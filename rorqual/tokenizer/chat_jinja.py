"""Chat templates that write what the renderer writes, for folders of ours that other programs load (tokenizer.chat).

Jinja text of each style for system text, tools, reasoning, calls and tool outputs, past turns included. What a template cannot do is keep a
control token that somebody writes into a message as text: that is up to the program that encodes its string; ours uses the renderer.
`templates.style_of` knows each template again.
"""

from __future__ import annotations

from typing import Final

from rorqual.tokenizer import special
from rorqual.tokenizer.chat import STYLES

_START: Final = """
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content -%}
        {%- for part in content -%}
            {%- if part['type'] != 'text' %}{{ raise_exception('this model reads text only') }}{% endif -%}
            {{- '' if loop.first else '\\n' -}}{{- part['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro words_of(value) -%}
    {%- if value is string %}{{- value -}}{% else %}{{- value | tojson -}}{% endif -%}
{%- endmacro -%}
{%- set think = THINKS if thinking is not defined or thinking is none else thinking -%}
{%- set ns = namespace(system=[], last_user=-1, outputs=false) -%}
{%- for m in messages -%}
    {%- if m['role'] in ['system', 'developer'] -%}
        {%- set ns.system = ns.system + [text_of(m['content'])] -%}
    {%- elif m['role'] == 'user' -%}
        {%- set ns.last_user = loop.index0 -%}
    {%- elif m['role'] not in ['assistant', 'tool'] -%}
        {{- raise_exception('no role of system, developer, user, assistant, tool: ' + m['role']) -}}
    {%- endif -%}
{%- endfor -%}
{{- '[BOS]' + ns.system | join('\\n\\n') -}}
{%- if tools -%}
    {{- '\\n\\n' if ns.system else '' -}}
    {{- '## Tools\\nYou have access to the following tools:\\n\\n' -}}
    {%- for tool in tools -%}
        {%- set f = tool['function'] -%}
        {{- '### ' + f['name'] + '\\nDescription: ' + (f['description'] or '') + '\\n\\nParameters: ' -}}
        {{- (f['parameters'] or {'type': 'object', 'properties': {}}) | tojson + '\\n\\n' -}}
    {%- endfor -%}
    {{- 'IMPORTANT: ALWAYS adhere to this exact format for tool use:\\n[CALLS][CALL]EXAMPLE[/CALL]{additional_tool_calls}[/CALLS]\\n\\nWhere:\\n' -}}
    {{- '- `tool_call_name` must be an exact match to one of the available tools\\n' -}}
    {{- "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\\n" -}}
    {{- '- For multiple tool calls, chain them directly without separators or spaces\\n' -}}
{%- endif -%}
"""
_TURNS: Final = """
{%- for m in messages -%}
    {%- if m['role'] == 'user' -%}
        {{- ('[/OUTPUTS]' if ns.outputs else '') + '[USER]' + text_of(m['content']) -}}
        {%- set ns.outputs = false -%}
    {%- elif m['role'] == 'assistant' -%}
        {%- set text = text_of(m['content']) -%}
        {%- if '[/THINK]' in text and (think or text.lstrip().startswith('[THINK]')) -%}
            {%- set text = (text.split('[/THINK]')[1:] | join('[/THINK]')).lstrip('\\n') -%}
        {%- endif -%}
        {%- set reasoning = (m['reasoning_content'] or m['reasoning'] or '') if think and loop.index0 > ns.last_user else '' -%}
        {{- '[/OUTPUTS]' if ns.outputs else '[ASSISTANT]' -}}
        {%- if reasoning -%}
            {{- '[THINK]GAP' + reasoning.strip('\\n') + 'GAP[/THINK]GAPGAP' -}}
        {%- elif not ns.outputs -%}
            NO_REASONING
        {%- endif -%}
        {%- set ns.outputs = false -%}
        {{- text -}}
        {%- for call in m['tool_calls'] or [] -%}
            {%- set f = call['function'] -%}
            {%- set given = '{}' if f['arguments'] is none or f['arguments'] is not defined else words_of(f['arguments']) -%}
            {{- '[CALLS]' if loop.first else 'BETWEEN' -}}
            WRITE_CALL
        {%- endfor -%}
        {{- ('[/CALLS]' if m['tool_calls'] else '') + '[EOS]' -}}
    {%- elif m['role'] == 'tool' -%}
        {{- ('' if ns.outputs else '[OUTPUTS]') + '[OUTPUT]' + text_of(m['content']) + '[/OUTPUT]' -}}
        {%- set ns.outputs = true -%}
    {%- endif -%}
{%- endfor -%}
{{- '[/OUTPUTS]' if ns.outputs else '' -}}
{%- if add_generation_prompt and not ns.outputs -%}
    OPENING
{%- endif -%}
"""
_FENCED: Final = "{{- '[CALL]' + (call['type'] or 'function') + '[SEP]' + f['name'] + '\\n```json\\n' + given + '\\n```[/CALL]' -}}"
_BARE: Final = "{{- '[CALL]' + f['name'] + '[SEP]' + given + '[/CALL]' -}}"
_PARTS: Final = {
    "v3": {
        "THINKS": "false", "BETWEEN": "\\n", "GAP": "\\n", "WRITE_CALL": _FENCED, "NO_REASONING": "",
        "EXAMPLE": "function[SEP]tool_call_name\\n```json\\ntool_call_arguments\\n```",
        "OPENING": "{{- '[ASSISTANT]' + ('[THINK]\\n' if think else '') -}}",
    },
    "r1": {
        "THINKS": "true", "BETWEEN": "\\n", "GAP": "\\n", "WRITE_CALL": _FENCED,
        "NO_REASONING": "{{- '[THINK]\\n\\n[/THINK]\\n\\n' if not think and loop.index0 > ns.last_user else '' -}}",
        "EXAMPLE": "function[SEP]tool_call_name\\n```json\\ntool_call_arguments\\n```",
        "OPENING": "{%- if think %}{{- '[ASSISTANT][THINK]\\n' -}}{% else %}{{- '[ASSISTANT][THINK]\\n\\n[/THINK]\\n\\n' -}}{% endif -%}",
    },
    "v3.1": {
        "THINKS": "false", "BETWEEN": "", "GAP": "", "WRITE_CALL": _BARE, "NO_REASONING": "{{- '[/THINK]' -}}",
        "EXAMPLE": "tool_call_name[SEP]tool_call_arguments",
        "OPENING": "{{- '[ASSISTANT]' -}}{%- if think %}{{- '[THINK]' -}}{% else %}{{- '[/THINK]' -}}{% endif -%}",
        "[OUTPUTS]": "", "[/OUTPUTS]": "",
    },
}  # fmt: skip
_TOKENS: Final = {
    "[BOS]": special.BOS, "[EOS]": special.EOS, "[USER]": special.USER, "[ASSISTANT]": special.ASSISTANT,
    "[THINK]": special.THINK_BEGIN, "[/THINK]": special.THINK_END, "[SEP]": special.TOOL_SEP,
    "[CALLS]": special.TOOL_CALLS_BEGIN, "[/CALLS]": special.TOOL_CALLS_END, "[CALL]": special.TOOL_CALL_BEGIN, "[/CALL]": special.TOOL_CALL_END,
    "[OUTPUTS]": special.TOOL_OUTPUTS_BEGIN, "[/OUTPUTS]": special.TOOL_OUTPUTS_END,
    "[OUTPUT]": special.TOOL_OUTPUT_BEGIN, "[/OUTPUT]": special.TOOL_OUTPUT_END,
}  # fmt: skip


def chat_template(style: str) -> str:
    """The template of a style, `v3`, `r1` or `v3.1`; it takes `messages`, `tools`, `add_generation_prompt` and `thinking`."""
    if style not in STYLES:
        raise ValueError(f"style ({style!r}) must be one of {', '.join(STYLES)}")
    text = "".join(line.strip() for line in (_START + _TURNS).splitlines())
    for name, value in (*_PARTS[style].items(), *_TOKENS.items()):
        text = text.replace(name, value)
    return text
