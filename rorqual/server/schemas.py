"""What requests may say: the fields of OpenAI's API that this server reads, and vLLM's beside them. Other fields are accepted, and ignored.

Types are taken strictly ("5" is no number); null means the default. Values beyond a field's type are judged by SamplingParams.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ids = Annotated[list[int], Field(max_length=10_000_000)]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class StreamOptions(_Request):
    """`include_usage`: one more chunk with the token counts, before the end."""

    include_usage: bool | None = None


class SamplingRequest(_Request):
    """What both kinds of completion take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_drafts: bool | None = None
    """Ours: every token in a chunk of its own, which says in `draft` whether it was an accepted draft."""
    user: str | None = None


_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": {"type": "object"}}]},
        "reasoning_content": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
}
Messages = Annotated[list[Any], Field(json_schema_extra={"items": _MESSAGE})]
"""What the document says of messages; tokenizer.chat.check_message judges them."""


class ChatRequest(SamplingRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """`{"thinking": true | false}`."""
    add_generation_prompt: bool | None = None


class CompletionRequest(SamplingRequest):
    """POST /v1/completions; the prompt is a text, token ids, or a list of either."""

    prompt: str | Ids | list[str] | list[Ids]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Literal[None] = None


class TokenizeRequest(_Request):
    """POST /tokenize: the ids of a text, or of a rendered conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    tools: list[Any] | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(_Request):
    """POST /detokenize: the text of ids."""

    model: str | None = None
    tokens: Ids
