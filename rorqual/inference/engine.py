"""The engine: requests in, tokens out, step by step; what one request gets does not depend on who else is served.

    engine = Engine(model, tokenizer)
    engine.add_request("a", [0, 5, 7], SamplingParams(max_tokens=32))
    while engine.has_work:
        for output in engine.step(): ...

A step is one forward over prefill chunks, decoding rows and drafts together. Only the target's own samples are committed, drawn from
noise keyed by position, so speculation, preemption, chunks and cached prefixes leave the answer as it is (report section 5.4.3).
Not thread-safe: one thread owns it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rorqual.errors import ConfigError, DataError
from rorqual.inference.blocks import BLOCK_SIZE, BlockPool
from rorqual.inference.paged import PagedStorage, block_bytes
from rorqual.inference.params import SamplingParams
from rorqual.inference.runner import Forward, Runner
from rorqual.inference.sampler import Draw, TokenLogprobs, draw, refuse_nan, token_logprobs
from rorqual.inference.scheduler import Scheduler, Sequence, Work
from rorqual.inference.switch import DraftSwitch
from rorqual.kernels import decode
from rorqual.model.transformer import CausalLM

if TYPE_CHECKING:
    from rorqual.inference.grammar import GrammarCompiler
    from rorqual.tokenizer.bpe import Tokenizer

DEFAULT_MEMORY = 512 * 2**20
_NO_STATES = torch.empty(0)
_LAG = 64  # positions that the MTP modules may lie behind while nobody wants drafts: many at once cost a fraction


@dataclass(frozen=True)
class StepOutput:
    """What one step gave choice `index` of a request. `finish_reason`: None while it goes on, "stop", "length" or "abort".

    `new_logprobs` where the request asked; `prompt_logprobs` once, with the first token, None for the prompt's first place.
    `routed_experts` once, at the end, where the engine records them: [tokens but the last, MoE layers, chosen], prompt included.
    """

    request_id: str
    index: int
    new_token_ids: list[int]
    new_logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    routed_experts: Tensor | None = None


@dataclass
class EngineStats:
    """Counters since the start, and gauges of now (`running`, `waiting`, `cache_usage` from 0 to 1)."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    drafts: int = 0
    accepted: int = 0
    preemptions: int = 0
    steps: int = 0


class Engine:
    """One model with its cache. The tokenizer is needed for stop strings and structured output alone.

    num_blocks: blocks of 16 tokens, or `memory` bytes of cache (default: what max_num_seqs full contexts need, at most 512 MiB).
    speculative: "auto" (one draft where the model has an MTP module, switched off while it does not pay), 0, or k drafts.
    vocab_limit: ids from there up are never sampled (default: the tokenizer's size). end_ids: tokens that end an answer beside the
    configuration's (inference.prompts.end_ids reads a folder's). poison: test mode, free slots hold NaN.
    compiled: False keeps to PyTorch where the compiled decode step would run. weights: type that it keeps matrices in, "fp32", "bf16", "fp16"
    or "int8" (default: the model's own); the last two change results, `runner.weight_error()` says by how much.
    enable_return_routed_experts: record which experts every token went to, as vLLM's option of that name.
    """

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer | None = None,
        *,
        num_blocks: int | None = None,
        memory: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        speculative: str | int = "auto",
        vocab_limit: int | None = None,
        end_ids: Many[int] = (),
        queue_limit: int | None = None,
        poison: bool = False,
        compiled: bool = True,
        weights: str | None = None,
        enable_return_routed_experts: bool = False,
    ) -> None:
        config = model.config
        self.auto = speculative == "auto"
        depth = config.num_nextn_predict_layers
        drafts = min(1, depth) if speculative == "auto" else speculative
        if not isinstance(drafts, int) or drafts < 0:
            raise ConfigError(f"speculative ({speculative!r}) must be 'auto' or a number of drafts of at least 0")
        self.num_drafts: int = drafts
        if self.num_drafts and not depth:
            raise ConfigError(f"speculative ({speculative}) needs an MTP module, and this model has none; use 0 or 'auto'")
        self._vocab_limit = vocab_limit if vocab_limit is not None else (tokenizer.vocab_size if tokenizer is not None else None)
        if self._vocab_limit is not None and not 1 <= self._vocab_limit <= config.vocab_size:
            raise ConfigError(f"vocab_limit ({self._vocab_limit}) must be from 1 to the model's vocab_size ({config.vocab_size})")
        dtype = model.model.norm.weight.dtype
        if compiled and dtype == torch.bfloat16 and decode.usable(config, model.state_dict()) is None:
            dtype = torch.float32  # the compiled step computes in FP32 whatever the weights are kept in
        layers = config.num_hidden_layers + min(self.num_drafts, depth)
        if num_blocks is None:
            wanted = max_num_seqs * -(-config.max_position_embeddings // BLOCK_SIZE)
            num_blocks = max(1, min(wanted, (memory or DEFAULT_MEMORY) // block_bytes(config, layers, dtype.itemsize)))
        self.model, self.tokenizer = model, tokenizer
        self.end_ids = frozenset([config.eos_token_id, *end_ids])
        device = model.head_weight.device
        self.storage = PagedStorage(
            config, num_blocks, num_layers=layers, dtype=dtype, device=device, poison=poison, keep_routes=enable_return_routed_experts,
            scratch=device.type == "cuda",
        )  # fmt: skip
        self.pool = BlockPool(num_blocks, BLOCK_SIZE, self.storage.free)
        self.scheduler = Scheduler(
            self.pool, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens, queue_limit=queue_limit
        )
        self.runner = Runner(model, self.storage, self.num_drafts, self._vocab_limit, compiled=compiled, weights=weights)
        self._requests: dict[str, list[Sequence]] = {}
        self._arrivals = 0
        self._counts = EngineStats()
        self._switch = DraftSwitch()
        self._compiler: GrammarCompiler | None = None

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._requests)

    @property
    def stats(self) -> EngineStats:
        """A copy of the counters, with the gauges of now."""
        s = self.scheduler
        return replace(
            self._counts, running=len(s.running), waiting=len(s.waiting), cache_usage=self.pool.usage,
            prefix_queries=s.prefix_queries, prefix_hits=s.prefix_hits, preemptions=s.preemptions,
        )  # fmt: skip

    def add_request(self, request_id: str, prompt_ids: Many[int], params: SamplingParams, *, deadline: float | None = None) -> None:
        """Takes a request; `deadline` is a time of `time.monotonic`, at which what is unfinished ends with "abort".

        DataError or ConfigError for what cannot be done, QueueFullError when too many wait; nothing is kept then.
        """
        if request_id in self._requests:
            raise ConfigError(f"request_id ({request_id!r}) is in use; give every request its own")
        length = self._checked_length(prompt_ids, params)
        stop_ids = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.end_ids)
        sequences: list[Sequence] = []
        for choice in range(params.n):
            one = Sequence(
                request_id, choice, self._arrivals, list(prompt_ids), len(prompt_ids), length, params, stop_ids, deadline,
                leader=sequences[0] if sequences else None,
            )  # fmt: skip
            self._equip(one)
            one.plain = one.grammar is None and not params.adjusts and not params.filters
            sequences.append(one)
        self.scheduler.add(sequences)
        self._arrivals += 1
        self._requests[request_id] = sequences
        self._counts.prompt_tokens += len(prompt_ids)

    def abort(self, request_id: str) -> None:
        """Forgets a request and frees its blocks; an unknown one is no error."""
        for sequence in self._requests.pop(request_id, []):
            if sequence.finish_reason is None:
                sequence.finish_reason = "abort"
                self.scheduler.remove(sequence)

    def reset_prefix_cache(self) -> None:
        """Forgets cached prefixes and takes the weights' present values, as a change of the weights requires; ConfigError while requests are unfinished."""
        if self.has_work:
            raise ConfigError(f"{len(self._requests)} requests are unfinished; finish or abort them before the prefix cache is reset")
        self.pool.forget()
        self.runner.refresh()

    def step(self) -> list[StepOutput]:
        """One forward for what is due; the new tokens of each choice that got any, and the end of those that ran out of time."""
        out = self._expired()
        began = time.perf_counter()
        speculates = self._speculates_now()
        work = self.scheduler.schedule(self.num_drafts if speculates else 0)
        if not work:
            return out
        decoding = all(one.sequence.computed == len(one.sequence.tokens) - 1 for one in work)
        self._propose(work)
        made = self.runner.forward(work, decoding and speculates and (not self.auto or self._switch.speculates(1)))
        before = self._counts.generation_tokens
        out += self._finish_step(work, made, speculates)
        self._counts.steps += 1
        if decoding and self.auto and self.num_drafts:
            self._switch.measure(speculates, time.perf_counter() - began, len(work), max(1, self._counts.generation_tokens - before))
        return out

    # ------------------------------------------------------------------ requests

    def _checked_length(self, prompt_ids: Many[int], params: SamplingParams) -> int:
        config = self.model.config
        if len(prompt_ids) == 0:
            raise DataError("the prompt is empty; begin with the end-of-document or begin-of-sentence token")
        for place, token in enumerate(prompt_ids):
            if type(token) is not int or not 0 <= token < config.vocab_size:
                raise DataError(f"the prompt has {token!r} at place {place}; token ids are whole numbers from 0 to {config.vocab_size - 1}")
        room = config.max_position_embeddings - len(prompt_ids)
        tokens = room if params.max_tokens is None else params.max_tokens
        if room < 1 or tokens > room:
            raise DataError(
                f"the prompt ({len(prompt_ids)} tokens) and max_tokens ({params.max_tokens}) exceed max_position_embeddings "
                f"({config.max_position_embeddings}); " + (f"use max_tokens of at most {room}" if room > 0 else "shorten the prompt")
            )
        held = self.pool.num_blocks * BLOCK_SIZE
        if len(prompt_ids) + tokens > held:
            raise DataError(
                f"prompt and max_tokens need {len(prompt_ids) + tokens} cache slots, and the cache has {held}; ask for fewer tokens"
            )
        return len(prompt_ids) + tokens

    def _equip(self, sequence: Sequence) -> None:
        params = sequence.params
        if not params.stop and params.structured_outputs is None:
            return
        if self.tokenizer is None:
            raise ConfigError("stop strings and structured outputs need a tokenizer, and this engine has none; give it one")
        from rorqual.inference.grammar import GrammarCompiler
        from rorqual.inference.stops import StopStream

        if params.stop:
            sequence.stops = StopStream(self.tokenizer.token_bytes, params.stop)
        if params.structured_outputs is not None:
            if self._compiler is None:
                self._compiler = GrammarCompiler(self.tokenizer, sorted(self.end_ids))
            sequence.grammar = self._compiler.compile(params.structured_outputs)

    def _expired(self) -> list[StepOutput]:
        now, out = time.monotonic(), []
        for request_id, sequences in list(self._requests.items()):
            deadline = sequences[0].deadline
            if deadline is not None and now >= deadline:
                out += [StepOutput(request_id, s.choice, [], None, "abort") for s in sequences if s.finish_reason is None]
                self.abort(request_id)
        return out

    # ------------------------------------------------------------------ speculation

    def _speculates_now(self) -> bool:
        return self._switch.speculates() if self.auto else True

    def _propose(self, work: list[Work]) -> None:
        groups: dict[int, list[Work]] = {}
        for one in work:
            if one.num_drafts and (one.sequence.ahead >= 0 or one.sequence.draft_rows):
                groups.setdefault(one.num_drafts, []).append(one)
        for count, group in groups.items():
            for one, drafts in zip(group, self.runner.propose([w.sequence for w in group], count), strict=True):
                grammar = one.sequence.grammar
                one.drafts = drafts if grammar is None else drafts[: grammar.validate(drafts)]

    # ------------------------------------------------------------------ from states to tokens

    def _finish_step(self, work: list[Work], made: Forward, speculates: bool) -> list[StepOutput]:
        ready, hidden = [], made.hidden or [_NO_STATES] * len(work)
        for one, states in zip(work, hidden, strict=True):
            if one.sequence.params.prompt_logprobs is not None:
                self._read_prompt_logprobs(one, states)
            if one.end == len(one.sequence.tokens):
                ready.append((one, states))
        out: list[StepOutput] = []
        taken: dict[Work, int] = {}
        if ready:
            tokens, logprobs, place = *self._drawn(ready, made), 0
            for one, _ in ready:
                width = 1 + len(one.drafts)
                out.append(self._commit(one, tokens[place : place + width], logprobs[place : place + width]))
                taken[one] = len(out[-1].new_token_ids) - 1
                place += width
        for number, (one, states) in enumerate(zip(work, hidden, strict=True)):
            s, count = one.sequence, one.end - one.sequence.computed + taken.get(one, 0)
            s.computed += count
            s.ahead = -1
            if self.runner.modules and s.finish_reason is None:
                if made.ahead is None:
                    self.runner.observe(s, states if count == states.shape[0] else states[:count])
                else:  # the module has seen them
                    s.draft_start, s.ahead = s.computed, max(made.ahead[number], 0)
        if self.runner.modules and made.ahead is None:
            self._catch_up([one.sequence for one in work if one.sequence.finish_reason is None], speculates)
        for one in work:
            s = one.sequence
            self.scheduler.register(s, min(s.computed, s.draft_start) if self.runner.modules else s.computed)
            if s.finish_reason is not None:
                if self.storage.routes is not None:
                    routes = self.storage.read_routes(s.blocks, len(s.tokens) - 1)
                    out = [replace(o, routed_experts=routes) if (o.request_id, o.index) == (s.request_id, s.choice) else o for o in out]
                self.scheduler.remove(s)
                if all(other.finish_reason for other in self._requests.get(s.request_id, [])):
                    self._requests.pop(s.request_id, None)
        return out

    def _catch_up(self, going: list[Sequence], speculates: bool) -> None:
        most = 1 + self.num_drafts
        late = [s for s in going if s.draft_rows > most and (speculates or s.draft_rows > _LAG or len(s.tokens) <= s.num_prompt_tokens + 1)]
        if speculates and self.num_drafts == 1:  # a prompt that has just been read: its rows and the first draft in one call
            ready = [s for s in late if s.computed == len(s.tokens) - 1 and len(s.tokens) + 1 < s.max_length]
            for s, drafts in zip(ready, self.runner.propose(ready, 1) if ready else [], strict=True):
                s.ahead = drafts[0]
            late = [s for s in late if s.ahead < 0]
        if late:
            self.runner.catch_up(late)

    def _drawn(self, ready: list[tuple[Work, Tensor]], made: Forward) -> tuple[list[int], Many[TokenLogprobs | None]]:
        """The target's tokens after the last token and each draft of the pieces that are due, and the log-probabilities that were asked for."""
        if made.tokens is not None and not any(one.sequence.params.logprobs is not None for one, _ in ready):
            refuse_nan(made.tokens)
            return made.tokens, ()
        logits = made.logits
        if logits is None:
            logits = self.runner.logits(torch.cat([states[-1 - len(one.drafts) :] for one, states in ready]))
        drawn = draw(logits, [d for one, _ in ready for d in self._draws(one)], self._vocab_limit)
        return drawn.tokens.tolist(), drawn.logprobs

    def _draws(self, one: Work) -> list[Draw]:
        """The target's draws at the place after the last token and after each draft."""
        s, grammar = one.sequence, one.sequence.grammar
        draws, history = [], s.tokens
        for ahead in range(1 + len(one.drafts)):
            if ahead and (s.params.adjusts or s.grammar is not None):
                history = s.tokens + one.drafts[:ahead]
            mask = None if grammar is None else grammar.mask()
            draws.append(Draw(s.params, s.choice, len(s.tokens) + ahead, history, s.num_prompt_tokens, mask, s.stop_ids))
            if grammar is not None and ahead < len(one.drafts):
                grammar.accept(one.drafts[ahead])
        if grammar is not None:
            grammar.rollback(len(one.drafts))
        return draws

    def _commit(self, one: Work, targets: list[int], logprobs: Many[TokenLogprobs | None]) -> StepOutput:
        """Takes the target's samples up to the first wrong draft or the end."""
        s, new = one.sequence, []
        first = len(s.tokens) == s.num_prompt_tokens
        for token, following in zip(targets, [*one.drafts, None], strict=True):
            new.append(token)
            s.tokens.append(token)
            if following is not None:
                self._counts.drafts += 1
                self._counts.accepted += token == following
            if s.grammar is not None:
                s.grammar.accept(token)
            self._judge(s, token)
            if s.finish_reason is not None or token != following:
                break
        self._counts.generation_tokens += len(new)
        kept = [found for found in logprobs[: len(new)] if found is not None] if s.params.logprobs is not None else None
        return StepOutput(s.request_id, s.choice, new, kept, s.finish_reason, s.prompt_logprobs if first else None)

    @staticmethod
    def _judge(s: Sequence, token: int) -> None:
        if token in s.stop_ids:
            s.finish_reason = "stop"
        elif s.stops is not None and len(s.tokens) - s.num_prompt_tokens >= s.params.min_tokens:
            s.stops.add([token])
            s.finish_reason = "stop" if s.stops.matched is not None else None
        if s.finish_reason is None and len(s.tokens) >= s.max_length:
            s.finish_reason = "length"

    def _read_prompt_logprobs(self, one: Work, states: Tensor) -> None:
        s = one.sequence
        wanted = s.params.prompt_logprobs or 0
        if s.prompt_logprobs is None:
            s.prompt_logprobs = [None]
        first = len(s.prompt_logprobs)  # a prompt that is read again after preemption is not counted twice
        last = min(one.end, s.num_prompt_tokens - 1)
        if last >= first and s.computed <= first - 1:
            logits = self.runner.logits(states[first - 1 - s.computed : last - s.computed])
            following = s.tokens[first : last + 1]
            s.prompt_logprobs += token_logprobs(logits, following, [wanted] * len(following), self._vocab_limit)
