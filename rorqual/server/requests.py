"""From a request's fields to ids and SamplingParams; what cannot be done is an ApiError that names the field (field case F25)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from rorqual.errors import ConfigError, DataError, TokenizerError
from rorqual.inference.params import SamplingParams, StructuredOutputs
from rorqual.server.errors import ApiError
from rorqual.server.schemas import ChatRequest, CompletionRequest, SamplingRequest
from rorqual.server.served import Served
from rorqual.tokenizer import special, templates
from rorqual.tokenizer.chat import Rendered, check_tool, forced_call, render

Model = TypeVar("Model", bound=BaseModel)
DEFAULT_COMPLETION_TOKENS = 16


def checked(model: type[Model], body: object) -> Model:
    """The body as `model`; ApiError 400 names the first wrong field."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained", "function")))
        raise ApiError(400, f"{place or 'the body'}: {first['msg']}", param=place or None) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None


def check_model(served: Served, name: str | None) -> None:
    """404 for a model that is not here."""
    if name is not None and name != served.name:
        raise ApiError(
            404, f"the model {name[:200]!r} does not exist here; this server has {served.name!r}", param="model", code="model_not_found"
        )


# ---------------------------------------------------------------------- prompts


def conversation(
    served: Served, messages: list[Any], tools: list[Any] | None, add_prompt: bool | None, options: Mapping[str, Any]
) -> Rendered:
    """Messages rendered in the model's own style."""
    thinking = options.get("thinking", options.get("enable_thinking"))
    if thinking is not None and not isinstance(thinking, bool):
        raise ApiError(400, f"chat_template_kwargs.thinking ({thinking!r}) must be true or false", param="chat_template_kwargs")
    add_prompt = add_prompt is not False
    try:
        if served.style != "template":
            return render(messages, served.tokenizer, tools=tools, add_generation_prompt=add_prompt, style=served.style, thinking=thinking)  # type: ignore[arg-type]
        template = served.tokenizer.chat_template or ""
        return templates.render_template(
            template, messages, served.tokenizer, tools=tools, add_generation_prompt=add_prompt, thinking=thinking
        )
    except DataError as error:
        raise ApiError(400, str(error), param="tools" if str(error).startswith("tools") else "messages") from None
    except (TokenizerError, RecursionError) as error:
        raise ApiError(400, f"these messages cannot be rendered: {error}", param="messages") from None


def prompts(served: Served, given: Any) -> list[list[int]]:
    """The prompts of /v1/completions as ids; an empty one starts a document."""
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise ApiError(400, "prompt is an empty list; give at least one", param="prompt")
    if any(isinstance(one, list) and not one for one in given):
        raise ApiError(400, "prompt holds an empty list of ids; give at least one id, such as the end-of-document token", param="prompt")
    return [text_ids(served, one) if isinstance(one, str) else list(one) for one in given]


def text_ids(served: Served, text: str, bos: bool = True) -> list[int]:
    """Ids of a plain prompt, in which special token strings are special, as a base model's user needs."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ApiError(400, "prompt holds half of a surrogate pair, which is no Unicode text", param="prompt")
    ids, first = served.tokenizer.encode(text), served.tokenizer.bos_id
    if bos and served.adds_bos and first is not None and ids[:1] != [first]:
        return [first, *ids]
    return ids or [first if served.adds_bos and first is not None else min(served.stop_ids, default=0)]


def check_prompt(served: Served, ids: Sequence[int], max_tokens: int | None) -> None:
    """400 for ids outside the embedding and for what does not fit the context."""
    outside = next((number for number in ids if not 0 <= number < served.vocab_size), None)
    if outside is not None:
        raise ApiError(400, f"token id {outside} is outside the vocabulary (0 to {served.vocab_size - 1})", param="prompt")
    asked = 1 if max_tokens is None else max_tokens
    if len(ids) + asked > served.max_model_len:
        raise ApiError(
            400, f"this model's context is {served.max_model_len} tokens; the prompt has {len(ids)} and {asked} are asked for "
            f"({len(ids) + asked} together)", param="messages", code="context_length_exceeded",
        )  # fmt: skip


# ---------------------------------------------------------------------- sampling


def chat_params(request: ChatRequest, structured: StructuredOutputs | None = None) -> SamplingParams:
    """SamplingParams of a chat; `structured` is a grammar that a forced tool call brings."""
    most = request.max_completion_tokens if request.max_completion_tokens is not None else request.max_tokens
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    return _params(request, most, logprobs, None, structured)


def completion_params(request: CompletionRequest) -> SamplingParams:
    """SamplingParams of a completion. `echo` with `max_tokens` 0 scores the prompt: one token is made, and not shown."""
    most = DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    most = 1 if most == 0 and request.echo else most
    return _params(request, most, request.logprobs, request.logprobs if request.echo else None, None)


def _params(
    request: SamplingRequest, most: int | None, logprobs: int | None, prompt_logprobs: int | None, structured: StructuredOutputs | None
) -> SamplingParams:
    stop = request.stop or ()
    try:
        return SamplingParams(
            max_tokens=most,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=max(0, request.top_k or 0) if request.top_k != -1 else 0,
            min_p=request.min_p or 0.0,
            seed=secrets.randbits(62) if request.seed is None else request.seed,
            n=request.n or 1,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=tuple(request.stop_token_ids or ()),
            include_stop_str_in_output=bool(request.include_stop_str_in_output),
            ignore_eos=bool(request.ignore_eos),
            min_tokens=request.min_tokens or 0,
            presence_penalty=request.presence_penalty or 0.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
            logit_bias=_bias(request.logit_bias or {}),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            structured_outputs=structured or _structured(request),
        )
    except ConfigError as error:
        raise ApiError(400, str(error), param=str(error).split(" ", 1)[0]) from None


def _bias(given: Mapping[str, float]) -> dict[int, float]:
    wrong = next((key for key in given if not (key.isdecimal() and key.isascii() and len(key) < 10)), None)
    if wrong is not None:
        raise ApiError(400, f"logit_bias ({wrong[:40]!r}) must map token ids to numbers", param="logit_bias")
    return {int(key): value for key, value in given.items()}


def _structured(request: SamplingRequest) -> StructuredOutputs | None:
    wanted = request.response_format
    if wanted is not None and request.structured_outputs is not None:
        raise ApiError(400, "give response_format or structured_outputs, not both", param="response_format")
    if request.structured_outputs is not None:
        given = request.structured_outputs
        unknown = sorted(set(given) - {"json", "regex", "grammar", "choice", "json_object"})
        types = {"json": (dict, str), "regex": (str,), "grammar": (str,), "choice": (list,), "json_object": (bool,)}
        wrong = unknown or sorted(name for name, value in given.items() if value is not None and not isinstance(value, types[name]))
        if wrong:
            raise ApiError(400, f"structured_outputs.{wrong[0]} is unknown or of the wrong type", param="structured_outputs")
        choice = given.get("choice")
        return StructuredOutputs(
            json=given.get("json"), regex=given.get("regex"), grammar=given.get("grammar"),
            choice=None if choice is None else tuple(choice), json_object=bool(given.get("json_object")),
        )  # fmt: skip
    match (wanted or {"type": "text"}).get("type"):
        case "text":
            return None
        case "json_object":
            return StructuredOutputs(json_object=True)
        case "json_schema":
            named = (wanted or {}).get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            if not isinstance(schema, dict):
                raise ApiError(400, "response_format.json_schema.schema must be a JSON schema object", param="response_format")
            return StructuredOutputs(json=schema)
        case other:
            raise ApiError(400, f"response_format.type ({other!r}) must be text, json_object or json_schema", param="response_format")


# ---------------------------------------------------------------------- tools


@dataclass(frozen=True)
class ToolUse:
    """Tools that a request shows to the model; `forced` is what the prompt ends with when a call is demanded, `grammar` its rest."""

    tools: list[Any] | None = None
    forced: tuple[int, ...] = ()
    grammar: StructuredOutputs | None = None


def tool_use(served: Served, request: ChatRequest) -> ToolUse:
    """What `tools` and `tool_choice` ask for."""
    choice = request.tool_choice if request.tool_choice is not None else "auto"
    try:
        functions = [check_tool(tool, at) for at, tool in enumerate(request.tools or [])]
    except DataError as error:
        raise ApiError(400, str(error), param="tools") from None
    if choice == "none" or (choice == "auto" and not functions):
        return ToolUse()
    if choice == "auto":
        return ToolUse(request.tools)
    named = None
    if isinstance(choice, dict):
        function = choice.get("function")
        named = function.get("name") if isinstance(function, dict) else None
    if choice != "required" and named is None:
        raise ApiError(
            400, 'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}', param="tool_choice"
        )
    allowed = [function for function in functions if named in (None, function["name"])]
    if not allowed:
        raise ApiError(400, f"tool_choice asks for {named or 'a function'}, which is not among the tools", param="tool_choice")
    if served.style == "template":
        raise ApiError(400, "tool_choice cannot be forced with this model's own chat template; use auto", param="tool_choice")
    if request.response_format or request.structured_outputs:
        raise ApiError(400, "a forced tool call and structured output exclude each other", param="tool_choice")
    grammar = StructuredOutputs(grammar=_call_grammar(allowed, served.style))
    return ToolUse(request.tools, tuple(forced_call(served.tokenizer, served.style)), grammar)  # type: ignore[arg-type]


def _call_grammar(functions: list[dict[str, Any]], style: str) -> str:
    """Name and arguments of one of the functions, in the style's syntax, as a Lark grammar."""
    lines = ["start: " + " | ".join(f"call{at}" for at in range(len(functions)))]
    for at, function in enumerate(functions):
        schema = json.dumps(function["parameters"] | {"x-guidance": {"whitespace_flexible": False}})
        if style == "v3.1":
            lines.append(f"call{at}: {json.dumps(function['name'])} {special.TOOL_SEP} %json {schema}")
        else:
            lines.append(
                f"call{at}: {json.dumps(function['name'] + chr(10) + '```json' + chr(10))} %json {schema} {json.dumps(chr(10) + '```')}"
            )
    return "\n".join(lines)
