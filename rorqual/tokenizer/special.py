"""DeepSeek-V3's special tokens and pre-tokeniser, as data. Report section 4.1.

The bars are U+FF5C and the underscores U+2581, written as escapes since look-alikes are easy to type and impossible to see.
The first three take ids 0, 1 and 2 as in the official file; the rest follow the base vocabulary, in the official order.
Ids are always looked up by string: `<think>` alone has two different ids in two published files of the same family.
"""

from __future__ import annotations

from typing import Final

_BAR: Final = "\uff5c"
_GAP: Final = "\u2581"


def _token(words: str) -> str:
    return f"<{_BAR}{words.replace(' ', _GAP)}{_BAR}>"


BOS: Final = _token("begin of sentence")
EOS: Final = _token("end of sentence")
PAD: Final = _token(" pad ")
THINK_BEGIN: Final = "<think>"
THINK_END: Final = "</think>"
FIM_HOLE: Final = _token("fim hole")
FIM_BEGIN: Final = _token("fim begin")
FIM_END: Final = _token("fim end")
USER: Final = _token("User")
ASSISTANT: Final = _token("Assistant")
EOT: Final = "<|EOT|>"
TOOL_CALLS_BEGIN: Final = _token("tool calls begin")
TOOL_CALLS_END: Final = _token("tool calls end")
TOOL_CALL_BEGIN: Final = _token("tool call begin")
TOOL_CALL_END: Final = _token("tool call end")
TOOL_OUTPUTS_BEGIN: Final = _token("tool outputs begin")
TOOL_OUTPUTS_END: Final = _token("tool outputs end")
TOOL_OUTPUT_BEGIN: Final = _token("tool output begin")
TOOL_OUTPUT_END: Final = _token("tool output end")
TOOL_SEP: Final = _token("tool sep")

LEADING: Final = (BOS, EOS, PAD)
"""Ids 0, 1, 2."""

TRAILING: Final = (
    THINK_BEGIN,
    THINK_END,
    FIM_HOLE,
    FIM_BEGIN,
    FIM_END,
    USER,
    ASSISTANT,
    EOT,
    TOOL_CALLS_BEGIN,
    TOOL_CALLS_END,
    TOOL_CALL_BEGIN,
    TOOL_CALL_END,
    TOOL_OUTPUTS_BEGIN,
    TOOL_OUTPUTS_END,
    TOOL_OUTPUT_BEGIN,
    TOOL_OUTPUT_END,
    TOOL_SEP,
)
"""The ids after the base vocabulary."""

DIGITS: Final = r"\p{N}{1,3}"
CJK: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
WORDS: Final = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*"
    "|\\s*[\r\n]+"
    "|\\s+(?!\\S)"
    "|\\s+"
)
SPLITS: Final = (DIGITS, CJK, WORDS)
"""Applied one after the other, every match isolated; then bytes, without a prefix space and without normalisation."""
