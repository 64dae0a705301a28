"""Supervised fine-tuning (report section 5.1): 2 epochs over packed, isolated samples, MTP kept in training, router bias frozen.

    result = run_sft(SFTConfig(model="runs/laptop", data="chat.jsonl"), "runs/laptop-sft")
    LLM("runs/laptop-sft/hf")

The step is pre-training's own (train.trainer.train_step): each loss term with its scale, so that packing and micro-batches change
nothing (field cases F16, F29, F30). A run that is interrupted saves, and goes on to the same bits: the order of rows is a function of
(seed, epoch), and nothing draws at random (field case F31).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rorqual.adapters import lora, peft
from rorqual.checkpoint import folder as folders
from rorqual.checkpoint import hf, resume
from rorqual.errors import ConfigError, NonFiniteError
from rorqual.model import balance
from rorqual.model.transformer import CausalLM
from rorqual.posttrain import packing, sft_data
from rorqual.posttrain.base import Base, check_apart, open_base
from rorqual.posttrain.folder import TuningFolder, check_same_start
from rorqual.posttrain.sft_config import SFTConfig
from rorqual.tokenizer import bpe, templates
from rorqual.tokenizer.chat_jinja import chat_template
from rorqual.train.metrics import MetricsLog, Progress, memory_bytes
from rorqual.train.optim import AdamW
from rorqual.train.rundir import truncate_metrics
from rorqual.train.signals import StopRequest
from rorqual.train.state import choose_device, optimizer_for
from rorqual.train.trainer import Batch, StepResult, train_step


@dataclass
class SFTPosition:
    """How far a run is. `tokens` counts what the model read, `targets` what it learned, padding apart."""

    step: int = 0
    tokens: int = 0
    targets: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class SFTResult:
    """How a call ended: `signal` that stopped it (None: finished), and the folder to use the model from."""

    step: int
    steps: int
    tokens: int
    loss: float | None
    signal: int | None
    folder: Path
    report: sft_data.DataReport
    packing_efficiency: float


@dataclass
class Tuning:
    """Model, optimiser and position; what a checkpoint holds. With adapters these alone are kept, the base is in its own folder."""

    model: CausalLM
    optimizer: AdamW
    position: SFTPosition

    def weights(self) -> dict[str, Tensor]:
        """What was trained, in FP32, and with all weights the router biases, by model name."""
        if len(self.optimizer.master) < sum(1 for _ in self.model.parameters()):
            return dict(self.optimizer.master)
        buffers = {name: t.detach() for name, t in self.model.state_dict().items() if name not in self.optimizer.master}
        return {**self.optimizer.master, **buffers}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of a checkpoint, experts apart; views, so that loading into them restores the run."""
        return resume.split_experts(self.weights() | {f"optimizer.{name}": t for name, t in self.optimizer.state().items()})

    def save(self, root: Path, keep: int, fingerprints: Mapping[str, str]) -> None:
        """Writes the checkpoint of this step, unless it is there."""
        folder = resume.step_folder(root, self.position.step)
        if self.position.step not in resume.steps(root):
            resume.save(folder, self.tensors(), {**asdict(self.position), "updates": self.optimizer.updates, **fingerprints})
        resume.prune(root, keep)

    def load(self, folder: Path, fingerprints: Mapping[str, str]) -> None:
        """Restores a checkpoint; CheckpointError where data or base model are not those of the run."""
        stored = resume.read_state(folder)
        check_same_start(folder, stored, fingerprints)
        resume.load(folder, self.tensors())
        self.optimizer.updates = int(stored["updates"])
        self.optimizer.sync_parameters()
        self.position = SFTPosition(**{key: stored[key] for key in asdict(SFTPosition())})


def run_sft(
    config: SFTConfig, out: str | Path, *, resume_run: bool = False, overwrite: bool = False, progress: bool = True,
    on_step: Callable[[Tuning, StepResult], None] | None = None, on_data: Callable[[int, int], None] | None = None,
) -> SFTResult:  # fmt: skip
    """Fine-tunes to the end, or until SIGINT or SIGTERM, which save first; writes `out`/hf, or `out`/adapter with LoRA.

    `on_step` sees each completed step; `on_data` gets (bytes done, bytes in all) while the data is rendered.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, dtype = choose_device(config)
    base = open_base(config.model)
    check(config, base)
    if overwrite:
        check_apart(base, out)
    tokenizer = base.tokenizer()
    with TuningFolder(out) as folder, StopRequest() as stop:
        lineage = {
            "kind": config.kind,
            "base": str(base.path.resolve()),
            "base_fingerprint": base.fingerprint(),
            "tokenizer": tokenizer.fingerprint,
        }
        folder.open(config, lineage, resume=resume_run, overwrite=overwrite)
        samples, report = sft_data.encode_file(config.data, tokenizer, config.render, folder.samples, progress=on_data)
        fingerprints = {"data_fingerprint": samples.fingerprint(), "base_fingerprint": base.fingerprint()}
        newest = resume.latest(folder.checkpoints)
        tuning = prepare(config, base, device, dtype)
        if newest is not None:
            tuning.load(newest, fingerprints)
        return _Loop(config, base, tokenizer, tuning, samples, report, folder, fingerprints, progress, on_step).run(stop)


def check(config: SFTConfig, base: Base) -> None:
    """Refuses, before any work, what the model cannot take."""
    limit = base.config.max_position_embeddings
    if config.render.max_tokens > limit:
        raise ConfigError(f"render.max_tokens ({config.render.max_tokens}) must be at most the model's max_position_embeddings ({limit})")
    if config.lora is None and config.weights is None and base.config.quantization_config is not None:
        raise ConfigError(
            f"{base.path} is in FP8; train adapters over it (--lora), or convert it first: rorqual export {base.path} OUT --to bf16"
        )
    if config.lora is not None and config.bias_update_speed:
        raise ConfigError(f"bias_update_speed ({config.bias_update_speed}) must be 0 with lora: an adapter has no place for router biases")


def prepare(config: SFTConfig, base: Base, device: torch.device, dtype: torch.dtype) -> Tuning:
    """The model to train, on its device: all weights with FP32 masters, or adapters over weights that are kept as `config.weights` says."""
    if config.lora is None:
        model = base.load("fp32")
        return Tuning(model, optimizer_for(model, config.optimizer, device, dtype), SFTPosition())
    model = base.load(config.weights or ("fp32" if dtype == torch.float32 else "bf16"))
    lora.apply(model.to(device), config.lora)
    return Tuning(model, AdamW(lora.trainable(model).items(), config.optimizer), SFTPosition())


class _Loop:
    """The steps of one call."""

    def __init__(
        self, config: SFTConfig, base: Base, tokenizer: bpe.Tokenizer, tuning: Tuning, samples: sft_data.Samples, report: sft_data.DataReport,
        folder: TuningFolder, fingerprints: Mapping[str, str], show: bool, on_step: Callable[[Tuning, StepResult], None] | None,
    ) -> None:  # fmt: skip
        self.config, self.base, self.tokenizer, self.tuning, self.samples, self.report = config, base, tokenizer, tuning, samples, report
        self.folder, self.fingerprints, self.on_step = folder, fingerprints, on_step
        self.rows = packing.pack(samples.all_places(), config.render.max_tokens, config.seed)
        self.efficiency = packing.efficiency(samples, self.rows, config.render.max_tokens)
        self.per_epoch = -(-len(self.rows) // config.batch_sequences)
        self.total = config.epochs * self.per_epoch
        self.kept = truncate_metrics(folder.metrics, tuning.position.step)
        self.log, self.progress = MetricsLog(folder.metrics), Progress(self.total, tuning.position.step, show)
        self.order: tuple[int, Any] = (-1, None)
        self.loss: float | None = None

    def run(self, stop: StopRequest) -> SFTResult:
        """Trains, saves, exports."""
        at = self.tuning.position
        try:
            self.log.write(
                "event", event="resumed" if at.step else "started", step=at.step, total_steps=self.total, rows=len(self.rows),
                packing_efficiency=self.efficiency, data=asdict(self.report), device=str(self.tuning.model.head_weight.device),
            )  # fmt: skip
            while at.step < self.total:
                if not self._step(stop):
                    self._save()
                    self.log.write("event", event="stopped", step=at.step, signal=stop.signal)
                    self.progress.say(f"stopped at step {at.step} of {self.total}; saved; continue with --resume")
                    return self._result(stop.signal)
                if at.step % self.config.checkpoint_every_steps == 0 or at.step == self.total:
                    self._save()
            stop.release()  # everything is saved
            self._export()
            return self._result(None)
        finally:
            self.progress.close()
            self.log.close()

    def _step(self, stop: StopRequest) -> bool:
        """One optimiser step; False where a signal came first."""
        began, config, at = time.monotonic(), self.config, self.tuning.position
        packed = packing.fill(self.samples, self._batch(at.step), self.tokenizer.pad_id or 0)
        segments = torch.from_numpy(packed.segment_ids)
        batch = Batch(torch.from_numpy(packed.input_ids), torch.from_numpy(packed.targets), segments, segments >= 0)
        rate = config.rate(at.step, self.total)
        result = train_step(
            self.tuning.model, self.tuning.optimizer, batch, micro_batch=config.micro_batch_sequences, learning_rate=rate,
            bias_update_speed=config.bias_update_speed, mtp_loss_weight=config.mtp_loss_weight, aux_loss_alpha=config.aux_loss_alpha,
            interrupted=lambda: stop.signal is not None,
        )  # fmt: skip
        if result.outcome == "interrupted":
            return False
        seconds = time.monotonic() - began
        at.step, at.tokens, at.targets, at.seconds = (
            at.step + 1,
            at.tokens + packed.tokens,
            at.targets + result.num_targets,
            at.seconds + seconds,
        )
        at.skipped_in_a_row = at.skipped_in_a_row + 1 if result.outcome == "non-finite" else 0
        at.skipped += result.outcome == "non-finite"
        self.loss = result.main
        self.progress.update(at.step, result.main, packed.tokens / seconds)
        self.log.write(
            "train", step=at.step, epoch=(at.step - 1) // self.per_epoch, tokens=at.tokens, targets=result.num_targets, outcome=result.outcome, lr=rate,
            loss=result.loss, main_loss=result.main, mtp_loss=result.mtp, balance_loss=result.balance, grad_norm=result.gradient_norm,
            max_vio=[] if result.loads is None else balance.max_violation(result.loads).tolist(), skipped_steps=at.skipped,
            tokens_per_second=packed.tokens / seconds, seconds=at.seconds, memory_bytes=memory_bytes(self.tuning.model.head_weight.device),
        )  # fmt: skip
        if self.on_step is not None:
            self.on_step(self.tuning, result)
        if at.skipped_in_a_row >= config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"loss or gradient norm was not finite in {at.skipped_in_a_row} steps in a row, up to step {at.step}; the last checkpoint "
                f"({resume.latest(self.folder.checkpoints)}) is intact; lower the learning rate (now {rate:.3g}) or look at the data of these steps"
            )
        return True

    def _batch(self, step: int) -> list[list[int]]:
        """Sample numbers of the rows of a step; the last step of an epoch may have fewer rows."""
        epoch, place = divmod(step, self.per_epoch)
        if self.order[0] != epoch:
            self.order = epoch, packing.row_order(len(self.rows), self.config.seed, epoch)
        size = self.config.batch_sequences
        return [self.rows[row] for row in self.order[1][place * size : (place + 1) * size].tolist()]

    def _save(self) -> None:
        self.tuning.save(self.folder.checkpoints, self.config.keep_checkpoints, self.fingerprints)

    def _export(self) -> None:
        """Writes the model folder, or the adapter's, with a chat template of the style that was learned, unless it is there."""
        if (self.folder.hf / "config.json").is_file() or self.folder.adapter.is_dir():
            return
        tokenizer = write_tokenizer(self.base, self.tokenizer, self.config.render.style, self.folder.tokenizer)
        if self.config.lora is not None:
            with folders.new_folder(self.folder.adapter) as partial:
                plain = not self.base.adapters and not self.base.checkpoint
                peft.save(self.tuning.model, self.config.lora, str((self.base.folder if plain else self.base.path).resolve()), partial)
        else:
            named = resume.split_experts(self.tuning.weights())
            hf.export_tensors(self.base.config.with_(quantization_config=None), named, tokenizer, self.folder.hf, dtype=self.base.stored)
        self.log.write("event", event="exported", step=self.tuning.position.step)

    def _result(self, signal: int | None) -> SFTResult:
        at = self.tuning.position
        return SFTResult(at.step, self.total, at.tokens, self.loss, signal, self.folder.path, self.report, self.efficiency)


def write_tokenizer(base: Base, tokenizer: bpe.Tokenizer, style: str, folder: Path) -> Path:
    """The folder to take the tokenizer's files from: the base's own where its template speaks the style, else a copy that does."""
    if templates.style_of(tokenizer) == style and tokenizer.chat_template is not None:
        return base.tokenizer_folder
    tokenizer.save(folder)
    (folder / "chat_template.jinja").write_text(chat_template(style), encoding="utf-8")
    for name in ("generation_config.json",):
        if (base.tokenizer_folder / name).is_file():
            (folder / name).write_bytes((base.tokenizer_folder / name).read_bytes())
    return folder
