"""What a run looks at without touching itself: validation, samples, and the last look at the end.

Every function leaves parameters, biases, counts and generators as they were (field case F13).
"""

from __future__ import annotations

from typing import Any

from rorqual.inference.llm import LLM
from rorqual.inference.params import SamplingParams
from rorqual.train.hyperparams import RunConfig
from rorqual.train.metrics import MetricsLog, Progress
from rorqual.train.state import TrainState
from rorqual.train.validation import Evaluation, evaluate

TEMPERATURE = 0.7  # of samples: below 1, since a small model's tail is noise


def _look(run: RunConfig, state: TrainState, data: Any, max_tokens: int | None, sliding: bool) -> tuple[str, Evaluation]:
    held_out = data.validation(run.train.validation_source, max_tokens)
    seen = evaluate(
        state.model, held_out.tokens, held_out.num_bytes, eos_id=data.tokenizer.eos_id, sequence_length=run.train.sequence_length,
        batch_sequences=run.train.micro_batch_sequences, sliding=sliding,
    )  # fmt: skip
    return held_out.source, seen


def _record(state: TrainState, source: str, seen: Evaluation, **more: Any) -> dict[str, Any]:
    return {
        "step": state.position.step, "tokens": state.position.tokens, "source": source, "loss": seen.loss, "bpb": seen.bpb,
        "mtp_loss": seen.mtp_loss, "mtp_acceptance": seen.mtp_acceptance, "validation_tokens": seen.tokens, "validation_bytes": seen.bytes,
        "seconds": seen.seconds, **more,
    }  # fmt: skip


def validate(run: RunConfig, state: TrainState, data: Any, log: MetricsLog, progress: Progress) -> None:
    """Scores the first `validation_tokens` tokens in windows side by side."""
    source, seen = _look(run, state, data, run.train.validation_tokens, sliding=False)
    log.write("validation", **_record(state, source, seen, weights="raw"))
    progress.say(f"step {state.position.step}  validation loss {seen.loss:.3f}  {seen.bpb:.3f} bits per byte")


def sample(run: RunConfig, state: TrainState, data: Any, log: MetricsLog) -> None:
    """Continues every prompt as the start of a document; the draw is keyed by (seed, prompt number), so samples of two steps differ by the model alone."""
    prompts = run.train.sample_prompts
    if not prompts:
        return
    eos, longest = data.tokenizer.eos_id, run.model.max_position_embeddings
    ids = [[eos, *data.tokenizer.encode(prompt)][: longest - 1] for prompt in prompts]
    params = [
        SamplingParams(
            max_tokens=min(run.train.sample_tokens, longest - len(prompt)), temperature=TEMPERATURE, seed=run.train.seed + number
        )
        for number, prompt in enumerate(ids)
    ]
    llm = LLM.from_model(state.model, max_num_seqs=len(ids), vocab_limit=data.vocab_size, speculative=0)
    for prompt, done in zip(prompts, llm.generate(ids, params), strict=True):
        text = data.tokenizer.decode([token for token in done.outputs[0].token_ids if token != eos])
        log.write("sample", step=state.position.step, tokens=state.position.tokens, prompt=prompt, text=text)


def final(run: RunConfig, state: TrainState, data: Any, log: MetricsLog, progress: Progress) -> list[dict[str, Any]]:
    """The whole validation set in sliding windows, the moving average on the part used during training, samples; returns the records."""
    progress.say("final validation")
    sample(run, state, data, log)
    records = []
    if state.ema is not None and state.ema.updates:
        with state.ema.applied(state.optimizer.parameters):
            source, seen = _look(run, state, data, run.train.validation_tokens, sliding=False)
        records.append(log.write("validation", **_record(state, source, seen, weights="ema", final=True)))
    source, seen = _look(run, state, data, None, sliding=True)
    records.append(log.write("validation", **_record(state, source, seen, weights="raw", final=True, sliding=True)))
    progress.say(f"final validation loss {seen.loss:.4f}  {seen.bpb:.4f} bits per byte")
    return records
