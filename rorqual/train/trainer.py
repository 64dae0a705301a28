"""The training loop (report section 4.2): from a RunConfig and a data folder to a trained model in a run folder.

One optimiser step: the whole batch in micro-batches, one AdamW update with the gradient clipped by its global norm, the
router biases moved once by the whole batch's load (section 2.1.2), the moving average. Learning rate, batch size, gamma and
lambda are functions of (step, tokens). A step whose loss or gradient is not finite changes nothing but the counters: weights,
moments, average and biases stay, the data goes on. A step without targets makes no update. See `train.state` for what resumes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.checkpoint import resume
from rorqual.errors import ConfigError, DataError, NonFiniteError
from rorqual.kernels import measure, memory
from rorqual.model import balance
from rorqual.model.transformer import CausalLM
from rorqual.parallel import recompute
from rorqual.planner import flops
from rorqual.train import extend, observe
from rorqual.train.hyperparams import RunConfig
from rorqual.train.loss import NO_TARGET, compute_loss
from rorqual.train.metrics import MetricsLog, Progress, memory_bytes, open_sink
from rorqual.train.optim import AdamW
from rorqual.train.records import to_plain
from rorqual.train.rundir import RunFolder, truncate_metrics
from rorqual.train.signals import StopRequest
from rorqual.train.state import TrainState, build, choose_device


@dataclass(frozen=True)
class Batch:
    """The sequences of one optimiser step: inputs, targets (-100: none), and for packed samples their segments."""

    input_ids: Tensor
    targets: Tensor
    segment_ids: Tensor | None = None
    token_mask: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        segment_ids, token_mask = (None if t is None else t.to(device, non_blocking=True) for t in (self.segment_ids, self.token_mask))
        return Batch(self.input_ids.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), segment_ids, token_mask)

    def micro(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` sequences."""
        for first in range(0, self.input_ids.shape[0], size):
            parts = (
                None if t is None else t[first : first + size] for t in (self.input_ids, self.targets, self.segment_ids, self.token_mask)
            )
            yield Batch(*parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. `outcome` is "updated", "non-finite", "no targets" or "interrupted"; only the first changed anything."""

    outcome: str
    num_targets: int
    loss: float = 0.0
    main: float = 0.0
    mtp: float = 0.0
    balance: float = 0.0
    gradient_norm: float = 0.0
    loads: Tensor | None = None


def train_step(
    model: CausalLM, optimizer: AdamW, batch: Batch, *, micro_batch: int, learning_rate: float, bias_update_speed: float,
    mtp_loss_weight: float, aux_loss_alpha: float, interrupted: Callable[[], bool] = lambda: False,
) -> StepResult:  # fmt: skip
    """One optimiser step, whatever the size of the micro-batches (field cases F13, F16, F30)."""
    device = model.head_weight.device
    num_targets = int((batch.targets != NO_TARGET).sum())
    if num_targets == 0:
        return StepResult("no targets", 0)
    optimizer.zero_grad()
    terms, loads = torch.zeros(4, dtype=torch.float64, device=device), None
    for part in batch.micro(micro_batch):
        if interrupted():
            optimizer.zero_grad()
            return StepResult("interrupted", num_targets)
        part = part.to(device)
        out = compute_loss(model, part.input_ids, part.targets, num_targets=num_targets, mtp_loss_weight=mtp_loss_weight,
                           aux_loss_alpha=aux_loss_alpha, segment_ids=part.segment_ids, token_mask=part.token_mask)  # fmt: skip
        out.loss.backward()
        optimizer.accumulate()
        terms += torch.stack([out.loss.detach().double(), out.main.double(), out.mtp.double(), out.balance.double()])
        loads = out.loads if loads is None or out.loads is None else loads + out.loads
    norm = optimizer.gradient_norm()
    loss, main, mtp, balance_loss = terms.tolist()
    result = StepResult("updated", num_targets, loss, main, mtp, balance_loss, norm, loads)
    if not (math.isfinite(loss) and math.isfinite(result.gradient_norm)):
        optimizer.zero_grad()
        return StepResult("non-finite", num_targets, loss, main, mtp, balance_loss, result.gradient_norm)
    optimizer.step(learning_rate, result.gradient_norm)
    optimizer.zero_grad()
    if loads is not None:
        biases = dict(model.router_biases())
        for layer, load in zip(out.layers, loads, strict=True):  # MTP included, unless it does not train
            if layer in biases:
                balance.update_bias(biases[layer], load, bias_update_speed)
    return result


@dataclass(frozen=True)
class TrainResult:
    """How a call of `train` ended: position, the signal that stopped it (None: finished), the records of the final validation."""

    step: int
    tokens: int
    signal: int | None
    final: list[dict[str, Any]]


def train(
    run: RunConfig, out: str | Path, *, data: Any, resume_run: bool = False, init: str | Path | None = None, init_weights: extend.Weights = "raw",
    overwrite: bool = False, sinks: Sequence[str] = (), progress: bool = True, ceiling_gflops: float | None = None,
    on_step: Callable[[TrainState, StepResult, Any], None] | None = None,
) -> TrainResult:  # fmt: skip
    """Trains to the end of the run, or until SIGINT or SIGTERM, which save first.

    `data` is a PackedDataset (or what acts as one). A new run takes an empty folder; `resume_run` continues the run of the
    folder exactly; `init` starts from the weights of another run or a Hugging Face folder (train.extend). `on_step` sees each
    completed step and may not change anything.
    """
    if run.train.threads is not None:
        torch.set_num_threads(run.train.threads)
    device, dtype = choose_device(run.train)
    check_data(run, data)
    if device.type == "cpu":
        memory.keep_freed()
    parent = None if init is None else extend.open_parent(init, init_weights)
    if parent is not None:
        extend.check_fits(parent, run, data.tokenizer.fingerprint)
        if overwrite:
            extend.check_apart(parent, Path(out))
    with RunFolder(out) as folder, StopRequest() as stop:
        newest = None
        if resume_run:
            folder.check_same(run)
            newest = resume.latest(folder.checkpoints)
            parent = extend.recorded_parent(folder.lineage) if newest is None else None
        else:
            folder.begin(run, extend.lineage(run, parent, data), overwrite=overwrite)
        state = build(run, device, dtype, None if parent is None else parent.load())
        if newest is not None:
            state.load(newest, data.fingerprint)
        elif parent is not None:  # the parent may change or go; from here on the phase stands alone
            state.save(folder.checkpoints, run, data.fingerprint)
        return _run(run, state, data, folder, stop, sinks, progress, ceiling_gflops, on_step)


def _run(
    run: RunConfig, state: TrainState, data: Any, folder: RunFolder, stop: StopRequest, sink_names: Sequence[str], show: bool,
    ceiling: float | None, on_step: Callable[[TrainState, StepResult, Any], None] | None,
) -> TrainResult:  # fmt: skip
    config, at, model = run.train, state.position, state.model
    device, total_steps = model.head_weight.device, config.num_steps()
    final = truncate_metrics(folder.metrics, at.step)
    sinks = [open_sink(name, folder.path, run.name, to_plain(run)) for name in sink_names]
    log, progress = MetricsLog(folder.metrics, sinks), Progress(total_steps, at.step, show)
    recompute.apply(model, config.recompute)
    if config.compile:
        for block in model.model.layers:
            block.compile()
    ceiling = measure.gemm_gflops() if ceiling is None else ceiling
    try:
        log.write(
            "event",
            event="resumed" if at.step else "started",
            step=at.step,
            tokens=at.tokens,
            device=str(device),
            total_steps=total_steps,
            ceiling_gflops=ceiling,
        )
        while at.tokens < config.total_tokens:
            began = time.monotonic()
            schedules = {
                "lr": config.learning_rate.value(at.step, at.tokens), "batch_size": config.batch.value(at.tokens),
                "bias_update_speed": config.bias_update_speed.value(at.tokens), "mtp_loss_weight": config.mtp_loss_weight.value(at.tokens),
            }  # fmt: skip
            samples = data.batch(at.sequences, schedules["batch_size"])
            tokens = torch.from_numpy(samples.tokens)
            result = train_step(
                model, state.optimizer, Batch(tokens[:, :-1], tokens[:, 1:]), micro_batch=config.micro_batch_sequences, learning_rate=schedules["lr"],
                bias_update_speed=schedules["bias_update_speed"], mtp_loss_weight=schedules["mtp_loss_weight"],
                aux_loss_alpha=config.aux_loss_alpha, interrupted=lambda: stop.signal is not None,
            )  # fmt: skip
            if result.outcome == "interrupted":
                break
            at.step, at.tokens, at.sequences = at.step + 1, at.tokens + tokens[:, 1:].numel(), at.sequences + tokens.shape[0]
            at.skipped_in_a_row = at.skipped_in_a_row + 1 if result.outcome == "non-finite" else 0
            at.skipped += result.outcome == "non-finite"
            if state.ema is not None and result.outcome == "updated":
                state.ema.update(at.step, state.optimizer.master)
            seconds = time.monotonic() - began
            at.seconds += seconds
            speed = tokens[:, 1:].numel() / seconds
            progress.update(at.step, result.main, speed)
            last = at.tokens >= config.total_tokens
            if at.step % config.log_every_steps == 0 or last or result.outcome != "updated":
                per_token = flops.train_flops_per_token(run.model, config.sequence_length, mtp=schedules["mtp_loss_weight"] > 0)
                log.write("train", **schedules, **_figures(state, result), tokens_per_second=speed, share_of_ceiling=speed * per_token / (ceiling * 1e9), memory_bytes=memory_bytes(device))  # fmt: skip
            if on_step is not None:
                on_step(state, result, samples)
            if at.skipped_in_a_row >= config.max_skipped_in_a_row:
                raise NonFiniteError(
                    f"loss or gradient norm was not finite in {at.skipped_in_a_row} steps in a row, up to step {at.step}; the run stops, its last checkpoint "
                    f"({resume.latest(folder.checkpoints)}) is intact; lower the learning rate (now {schedules['lr']:.3g}) or look at the data of these steps"
                )
            if at.step % config.validate_every_steps == 0 and not last:
                observe.validate(run, state, data, log, progress)
            if config.sample_every_steps and at.step % config.sample_every_steps == 0 and not last:
                observe.sample(run, state, data, log)
            if at.step % config.checkpoint_every_steps == 0 or last:
                state.save(folder.checkpoints, run, data.fingerprint)
        if stop.signal is not None and at.tokens < config.total_tokens:
            state.save(folder.checkpoints, run, data.fingerprint)
            log.write("event", event="stopped", step=at.step, tokens=at.tokens, signal=stop.signal)
            progress.say(f"stopped at step {at.step} of {total_steps}; saved; continue with --resume")
            return TrainResult(at.step, at.tokens, stop.signal, [])
        stop.release()  # everything is saved: from here on an interrupt may end the process at once
        if not final:
            final = observe.final(run, state, data, log, progress)
        return TrainResult(at.step, at.tokens, None, final)
    finally:
        progress.close()
        log.close()


def _figures(state: TrainState, result: StepResult) -> dict[str, Any]:
    """The numbers of a completed step under their metric names; loads and violations in order of the MoE layers."""
    at, biases = state.position, [bias for _, bias in state.model.router_biases()]
    return {
        "step": at.step, "tokens": at.tokens, "sequences": at.sequences, "outcome": result.outcome, "targets": result.num_targets,
        "loss": result.loss, "main_loss": result.main, "mtp_loss": result.mtp, "balance_loss": result.balance, "grad_norm": result.gradient_norm,
        "max_vio": [] if result.loads is None else balance.max_violation(result.loads).tolist(),
        "load": [] if result.loads is None else result.loads.tolist(),
        "bias_min": [bias.min().item() for bias in biases], "bias_max": [bias.max().item() for bias in biases],
        "skipped_steps": at.skipped, "seconds": at.seconds,
    }  # fmt: skip


def check_data(run: RunConfig, data: Any) -> None:
    """Refuses data that the model cannot take, before any work (field cases of bad input)."""
    if data.vocab_size > run.model.vocab_size:
        raise DataError(f"the data has token ids up to {data.vocab_size - 1}, model.vocab_size is {run.model.vocab_size}; build the data with a smaller vocabulary or set model.vocab_size={data.vocab_size}")  # fmt: skip
    if run.train.validation_source is not None and run.train.validation_source not in data.sources:
        raise ConfigError(f"train.validation_source ({run.train.validation_source!r}) is not in the data, which has {', '.join(data.sources)}; set train.validation_source to one of them")  # fmt: skip
