"""Offline batches: `LLM(folder).generate(prompts, SamplingParams(...))`, with vLLM's names; also the rollout engine of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rorqual.errors import ConfigError
from rorqual.inference.engine import Engine, StepOutput
from rorqual.inference.gpu import device_for
from rorqual.inference.params import SamplingParams
from rorqual.inference.prompts import end_ids, prompt_ids
from rorqual.inference.sampler import TokenLogprobs
from rorqual.inference.stops import StopStream

if TYPE_CHECKING:
    from rorqual.model.transformer import CausalLM
    from rorqual.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class CompletionOutput:
    """One choice. `token_ids` ends with the stop token where there was one; `text` is without it ("" without a tokenizer).

    `routed_experts` [tokens of prompt and answer but the last, MoE layers, chosen] where the engine records them.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None
    finish_reason: str
    routed_experts: Tensor | None = None


@dataclass(frozen=True)
class RequestOutput:
    """All choices of one prompt; `prompt` is None where ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[TokenLogprobs | None] | None = None


class LLM:
    """A model folder (config.json, safetensors, tokenizer) ready for batches; `engine` is open for its counters.

    device: "auto" takes a GPU where there is one (inference.gpu.device_for). weights: "fp32", "bf16" or "fp8" (checkpoint.reader.load; default:
    FP32 on a CPU, BF16 on a GPU); "fp16" and "int8" change results, `engine.runner.weight_error()` says by how
    much, and are not for rollouts of training, whose `from_model` does not take them. CheckpointError or TokenizerError for a folder that is not a model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        weights: str | None = None,
        device: str = "auto",
        speculative: str | int = "auto",
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        memory: int | None = None,
    ) -> None:
        from rorqual.checkpoint import hf
        from rorqual.tokenizer import bpe

        place, where = Path(folder), device_for(device, weights)
        lossy = weights in ("fp16", "int8")
        loaded_as = "fp32" if lossy or (weights is None and where == "cpu") else weights or "bf16"
        model, _ = hf.load(place, weights=loaded_as, device=where)
        tokenizer = bpe.load(place)
        self.tokenizer: Tokenizer | None = tokenizer
        self.engine = Engine(
            model, tokenizer, speculative=speculative, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            memory=memory, end_ids=end_ids(place, tokenizer), weights=weights if lossy else None,
        )  # fmt: skip
        self._calls, self._keeps_prefixes, self._adds_bos = 0, True, tokenizer.adds_bos

    @classmethod
    def from_model(
        cls,
        model: CausalLM,
        tokenizer: Tokenizer | None = None,
        *,
        speculative: str | int = "auto",
        max_num_seqs: int = 64,
        vocab_limit: int | None = None,
        end_ids: Sequence[int] = (),
        compiled: bool = True,
        enable_return_routed_experts: bool = False,
    ) -> LLM:
        """Over a model in memory, whose weights may change between two calls: no cached prefix outlives a call.

        The options are the engine's.
        """
        made = cls.__new__(cls)
        made.tokenizer = tokenizer
        made.engine = Engine(
            model, tokenizer, speculative=speculative, max_num_seqs=max_num_seqs, vocab_limit=vocab_limit, end_ids=end_ids,
            compiled=compiled, enable_return_routed_experts=enable_return_routed_experts,
        )  # fmt: skip
        made._calls, made._keeps_prefixes, made._adds_bos = 0, False, False
        return made

    def generate(
        self,
        prompts: str | Sequence[int] | Sequence[str | Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),  # noqa: B008  (frozen)
    ) -> list[RequestOutput]:
        """Continues one prompt (text or ids) or a list of them, with one set of parameters or one each; in the prompts' order."""
        single = isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int))
        listed: list[str | Sequence[int]] = [prompts] if single else list(prompts)  # type: ignore[list-item,arg-type]
        each = [params] * len(listed) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(listed):
            raise ConfigError(f"{len(each)} sampling parameters for {len(listed)} prompts; give one for all, or one each")
        ids = [self._encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in listed]
        self._calls += 1
        if not self._keeps_prefixes:
            self.engine.reset_prefix_cache()
        names = [f"{self._calls}-{number}" for number in range(len(listed))]
        answers = {(name, choice): _Answer() for name, p in zip(names, each, strict=True) for choice in range(p.n)}
        try:
            for name, prompt, wanted in zip(names, ids, each, strict=True):
                self.engine.add_request(name, prompt, wanted)
            while self.engine.has_work:
                for out in self.engine.step():
                    answers[out.request_id, out.index].add(out)
        except BaseException:
            for name in names:
                self.engine.abort(name)
            raise
        return [
            RequestOutput(
                given if isinstance(given, str) else None, prompt,
                [self._completion(choice, answers[name, choice], wanted) for choice in range(wanted.n)], answers[name, 0].prompt_logprobs,
            )
            for name, given, prompt, wanted in zip(names, listed, ids, each, strict=True)
        ]  # fmt: skip

    def _encode(self, prompt: str) -> list[int]:
        if self.tokenizer is None:
            raise ConfigError("a prompt in text needs a tokenizer, and this LLM has none; give token ids")
        return prompt_ids(self.tokenizer, prompt, self._adds_bos, self.engine.model.config.eos_token_id)

    def _completion(self, index: int, answer: _Answer, params: SamplingParams) -> CompletionOutput:
        ids, text = answer.token_ids, ""
        if self.tokenizer is not None:
            ends = () if params.ignore_eos else self.engine.end_ids
            ended = answer.finish_reason == "stop" and ids[-1] in (*params.stop_token_ids, *ends)
            shown = ids[:-1] if ended else ids
            early = max(0, params.min_tokens - 1)  # stop strings count from the min_tokens-th token on, as in the engine
            before = StopStream(self.tokenizer.token_bytes)
            stream = StopStream(self.tokenizer.token_bytes, params.stop, params.include_stop_str_in_output)
            if early == 0:
                text = stream.add(shown) + stream.finish()
            else:
                text = before.add(shown[:early]) + before.finish() + stream.add(shown[early:]) + stream.finish()
        return CompletionOutput(index, text, ids, answer.logprobs, str(answer.finish_reason), answer.routed_experts)


class _Answer:
    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] | None = None
        self.finish_reason: str | None = None
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.routed_experts: Tensor | None = None

    def add(self, out: StepOutput) -> None:
        """Takes what a step gave."""
        self.token_ids += out.new_token_ids
        if out.new_logprobs is not None:
            self.logprobs = (self.logprobs or []) + out.new_logprobs
        self.finish_reason = out.finish_reason
        self.prompt_logprobs = out.prompt_logprobs or self.prompt_logprobs
        self.routed_experts = out.routed_experts
