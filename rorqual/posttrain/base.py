"""The model that post-training starts from: a model folder, a run's export, its newest checkpoint, or its adapter over another of these."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rorqual.adapters import lora, peft
from rorqual.checkpoint import hf
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError, ConfigError
from rorqual.model.transformer import CausalLM
from rorqual.posttrain.folder import adapter_base
from rorqual.tokenizer import bpe
from rorqual.train import extend
from rorqual.train.state import load_weights

_SAMPLES = 64
_TOKENIZERS = ("tokenizer.json", "tiktoken.model")


@dataclass(frozen=True)
class Base:
    """`folder` has the weights, to which `adapters` are added in their order; `tokenizer_folder` the tokenizer's files. `stored` is the dtype to
    write results in: "fp32" or "bf16"."""

    path: Path
    folder: Path
    config: ModelConfig
    tokenizer_folder: Path
    stored: str
    checkpoint: bool = False
    adapters: tuple[Path, ...] = ()

    def tokenizer(self) -> bpe.Tokenizer:
        """Its tokenizer; CheckpointError where that has more ids than the embedding has rows."""
        tokenizer = bpe.load(self.tokenizer_folder)
        if tokenizer.vocab_size > self.config.vocab_size:
            raise CheckpointError(
                f"{self.tokenizer_folder} has token ids up to {tokenizer.vocab_size - 1}, the model's embedding ends at {self.config.vocab_size - 1}; this tokenizer belongs to another model"
            )
        return tokenizer

    def load(self, weights: str = "fp32") -> CausalLM:
        """The model on the CPU, its adapters merged; weights "fp32", "bf16" or, of an FP8 folder, "fp8"."""
        model = self._load(weights)
        for adapter in self.adapters:
            peft.load(model, adapter)
            lora.merge(model)
        return model.requires_grad_(weights != "fp8")

    def _load(self, weights: str) -> CausalLM:
        if not self.checkpoint:
            return hf.load(self.folder, weights=weights)[0]
        if weights == "fp8":
            raise CheckpointError(f"{self.path} is a run in FP32; export it with --to fp8 to keep its weights in FP8")
        model = CausalLM(self.config)
        load_weights(model, extend.open_parent(self.folder.parents[1]).load())
        return model if weights == "fp32" else model.to(torch.bfloat16)

    def fingerprint(self) -> str:
        """Changes when configuration or weights do: names and sizes of the files, and 64 evenly placed samples of 4 KB of each."""
        digest = hashlib.blake2b((self.folder / "config.json").read_bytes() if not self.checkpoint else b"", digest_size=16)
        for path in sorted(self.folder.rglob("*.safetensors")):
            size = path.stat().st_size
            digest.update(f"{path.name}:{size};".encode())
            with path.open("rb") as file:
                for place in range(_SAMPLES):
                    file.seek(size * place // _SAMPLES)
                    digest.update(file.read(4096))
        for adapter in self.adapters:
            digest.update((adapter / peft.WEIGHTS).read_bytes())
        return digest.hexdigest()


def open_base(path: str | Path) -> Base:
    """Looks at a folder without reading weights; CheckpointError for what is neither a model nor a run with something saved."""
    path = Path(path)
    if not (path / "config.json").is_file():
        what = "has no config.json, so it is neither a run nor a model folder" if path.is_dir() else "is not a folder"
        raise CheckpointError(f"{path} {what}; give a run (runs/NAME) or a folder with config.json and safetensors files")
    exported = (path / "hf" / "config.json").is_file()
    under = adapter_base(path)
    if under is not None:
        below = open_base(under)
        own = path / "tokenizer"
        places = own if any((own / name).is_file() for name in _TOKENIZERS) else below.tokenizer_folder
        return replace(below, path=path, tokenizer_folder=places, adapters=(*below.adapters, path / "adapter"))
    if not exported and (extend.is_run(path) or (path / "checkpoints").is_dir()):
        parent = extend.open_parent(path)
        from rorqual.checkpoint import resume

        newest = resume.latest(path / "checkpoints")
        assert newest is not None  # open_parent has refused a run without one
        return Base(path, newest, parent.model, _tokenizer(path, path), "fp32", checkpoint=True)
    folder = path / "hf" if exported else path
    from rorqual.checkpoint.source import FolderSource

    with FolderSource(folder) as source:
        config = source.config
        stored = "fp32" if source.dtype("model.norm.weight") == "F32" and config.quantization_config is None else "bf16"
    return Base(path, folder, config, _tokenizer(folder, path), stored)


def check_apart(base: Base, out: str | Path) -> None:
    """Refuses to replace a run that holds the model to start from, which would be deleted before it is read."""
    out = Path(out).resolve()
    if any(place.resolve() == out or place.resolve().is_relative_to(out) for place in (base.path, base.folder, *base.adapters)):
        raise ConfigError(f"cannot start from {base.path} and replace {out}: that would delete it first; choose another --out")


def _tokenizer(folder: Path, run: Path) -> Path:
    for place in (folder, run / "tokenizer", run / "data" / "tokenizer"):
        if any((place / name).is_file() for name in _TOKENIZERS):
            return place
    raise CheckpointError(f"{run} has no tokenizer.json and no tiktoken.model; put the tokenizer's files into the folder")
