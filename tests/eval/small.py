"""A tiny model with a tokenizer, an engine over it, and the bundled data where they are there."""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.eval.models import EngineModel
from rorqual.inference.engine import Engine
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe
from tests.tiny import t0

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("RORQUAL_DATA", ROOT.parent / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "MANIFEST.tsv").is_file(), reason=f"the evaluation data are not at {DATA} (RORQUAL_DATA)")

TEXTS = ["Question: which whale sings?\nAnswer: the blue whale sings, 42 times a day. #### 42\n \U0001f40b \u00e9 \u6df1\n"] * 20


@functools.cache
def tokenizer_folder() -> Path:
    """A byte-level tokenizer of 320 ids."""
    folder = Path(tempfile.mkdtemp(prefix="rorqual-eval-")) / "tokenizer"
    bpe.train(TEXTS, 320, folder)
    return folder


@functools.cache
def tokenizer() -> bpe.Tokenizer:
    return bpe.load(tokenizer_folder())


@functools.cache
def model(uniform: bool = False) -> CausalLM:
    """Random weights; `uniform` makes every token equally likely."""
    tok = tokenizer()
    config = t0(
        vocab_size=tok.vocab_size, initializer_range=0.1, bos_token_id=tok.bos_id, eos_token_id=tok.eos_id,
        max_position_embeddings=512, rope_scaling=None,
    )  # fmt: skip
    made = CausalLM(config)
    made.init_weights(1)
    if uniform:
        with torch.no_grad():
            made.lm_head.weight.zero_()
    return made


def engine_model(uniform: bool = False, window: int | None = None, poison: bool = True) -> EngineModel:
    """An EngineModel over its own engine."""
    engine = Engine(model(uniform), tokenizer(), poison=poison)
    return EngineModel(engine, tokenizer(), "tiny", window=window)


@torch.no_grad()
def reference(tokens: list[int], start: int) -> list[float]:
    """Log-probabilities of tokens[start:] by one plain forward."""
    logits = model().logits(model()(torch.tensor([tokens[:-1]])).hidden)[0].log_softmax(dim=-1)
    return logits[start - 1 :].gather(1, torch.tensor(tokens[start:]).unsqueeze(1)).squeeze(1).tolist()


def export(folder: Path) -> Path:
    """The model as a folder."""
    return hf.export(model(), tokenizer_folder(), folder)
