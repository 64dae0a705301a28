"""The whole model: embedding, one ordered list of blocks (trunk, then MTP modules), final norm, head (report section 2).

Attribute paths are the official checkpoint's, so its keys need no map; only the routed experts are stacked. The model
knows nothing of devices, ranks or files. Shape letters: b batch, s position, m model width, v vocabulary.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rorqual.config import ModelConfig
from rorqual.model import balance
from rorqual.model.balance import SequenceWeights
from rorqual.model.block import Block, BlockStats
from rorqual.model.layers import Embedding, GroupedLinear, Linear, RMSNorm
from rorqual.model.mla import AttentionContext, LatentCache
from rorqual.model.mtp import MTPBlock
from rorqual.model.rope import rope_parameters, rope_tables
from rorqual.model.router import Routing


@dataclass(frozen=True)
class Output:
    """Result of one forward.

    hidden: main model after its final norm. mtp_hidden[k]: MTP module k+1 after its norm, for positions 0..s-2-k.
    loads: tokens per expert, one int64 row per MoE layer that ran, in order of `layers`. balance_loss: sum over those layers
    of sequence_balance_loss, not yet multiplied by alpha; None unless sequence weights were given.
    routings: the same layers' routing, tokens in the order of the batch.
    """

    hidden: Float[Tensor, "b s m"]
    mtp_hidden: tuple[Tensor, ...]
    layers: tuple[int, ...]
    loads: Int[Tensor, "l e"] | None
    balance_loss: Float[Tensor, ""] | None
    routings: tuple[Routing, ...] = ()


class Decoder(nn.Module):
    """Embedding, blocks and final norm, under the checkpoint's prefix `model.`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList((MTPBlock if config.is_mtp(i) else Block)(config, i) for i in range(config.num_blocks))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class CausalLM(nn.Module):
    """A DeepSeek-V3-family language model. Parameters are made on torch's default device, uninitialised: load or `init_weights`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config.settled()
        self.rope = rope_parameters(config)
        self.model = Decoder(config)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.hidden_size, config.vocab_size)

    @property
    def head_weight(self) -> Float[Tensor, "v m"]:
        """The output matrix: lm_head's, or the embedding's where the two are tied."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.dense_weight()

    @property
    def mtp_modules(self) -> list[MTPBlock]:
        """The MTP modules, the last blocks of the one ordered list."""
        return [block for block in self.model.layers if isinstance(block, MTPBlock)]

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """N(0, initializer_range) for every matrix, one for every norm, zero for router biases.

        Each matrix, and each expert's, draws from its own stream keyed by (seed, name), so that no layout changes a value.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            for index, matrix in enumerate(parameter if parameter.dim() == 3 else [parameter]):
                key = hashlib.blake2b(f"{seed}:{name}:{index}".encode(), digest_size=7).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
                values = torch.empty(matrix.shape, dtype=torch.float32).normal_(0.0, self.config.initializer_range, generator=generator)
                matrix.copy_(values)
        for _, bias in self.router_biases():
            bias.zero_()

    def router_biases(self) -> list[tuple[int, Float[Tensor, " e"]]]:
        """(layer, e_score_correction_bias) of every MoE block that has one, MTP included, in order."""
        blocks = ((block.layer, getattr(block.mlp, "gate", None)) for block in self.model.layers if isinstance(block, Block))
        return [
            (layer, gate.e_score_correction_bias) for layer, gate in blocks if gate is not None and gate.e_score_correction_bias is not None
        ]

    def logits(self, hidden: Float[Tensor, "... m"]) -> Float[Tensor, "... v"]:
        """The output head in FP32 (report section 3.3: the head keeps its precision)."""
        return torch.nn.functional.linear(hidden.float(), self.head_weight.float())

    def context(
        self, positions: Int[Tensor, "b s"], segment_ids: Int[Tensor, "b s"] | None = None, cache: LatentCache | None = None
    ) -> AttentionContext:
        """Rotary tables for one forward; with segments, tokens see only earlier tokens of their own segment."""
        cos, sin = rope_tables(self.rope, positions)
        mask = runs = None
        if segment_ids is not None and (runs := segment_runs(segment_ids)) is None:
            place = torch.arange(segment_ids.shape[1], device=segment_ids.device)
            mask = (segment_ids.unsqueeze(1) == segment_ids.unsqueeze(2)) & (place.unsqueeze(0) <= place.unsqueeze(1))
        return AttentionContext(positions, cos, sin, self.rope.softmax_scale, mask, cache, runs)

    def forward(
        self,
        input_ids: Int[Tensor, "b s"],
        positions: Int[Tensor, "b s"] | None = None,
        segment_ids: Int[Tensor, "b s"] | None = None,
        token_mask: Bool[Tensor, "b s"] | None = None,
        cache: LatentCache | None = None,
        mtp: bool = False,
        sequences: SequenceWeights | None = None,
        routes: Int[Tensor, "l b s k"] | None = None,
    ) -> Output:
        """Runs the trunk and, with `mtp`, the MTP modules on the shifted tokens of the same batch.

        routes are experts to use in the trunk's MoE layers instead of the router's choice, -1 where the router is to choose.
        segment_ids isolate packed samples (SFT; report section 5.1), None packs without isolation (pre-training; trap 8).
        token_mask is False on padding, which is seen by nobody and counted nowhere.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0).expand(input_ids.shape)
        if token_mask is not None:
            segment_ids = (torch.zeros_like(input_ids) if segment_ids is None else segment_ids).masked_fill(~token_mask, -1)
        elif segment_ids is not None:
            token_mask = segment_ids >= 0
        context = self.context(positions, segment_ids, cache)
        stats: list[tuple[BlockStats, Tensor | None, SequenceWeights | None]] = []
        x = embedded = self.model.embed_tokens(input_ids)
        depth = self.config.num_hidden_layers
        for layer, block in enumerate(self.model.layers[:depth]):
            given = routes[len(stats)].flatten(0, 1) if routes is not None and self.config.is_moe(layer) else None
            x, block_stats = block(x, context, given)
            if block_stats is not None:
                stats.append((block_stats, token_mask, sequences))
        hidden = previous = self.model.norm(x)
        mtp_hidden = []
        for ahead, block in enumerate(self.mtp_modules if mtp else (), start=1):
            keep = input_ids.shape[1] - ahead
            if keep < 1:
                break
            ids = None if segment_ids is None else segment_ids[:, :keep]
            real = self._same_segment(segment_ids, token_mask, ahead)
            previous, block_stats = block.predict(previous[:, :keep], embedded[:, ahead:], self.context(positions[:, :keep], ids))
            mtp_hidden.append(previous)
            if block_stats is not None:
                part = sequences and SequenceWeights(self._masked(sequences.ids[:, :keep], real), sequences.weights, sequences.rows)
                stats.append((block_stats, real, part))
        return self._output(hidden, tuple(mtp_hidden), stats)

    def mtp_hidden(
        self, index: int, hidden: Float[Tensor, "b s m"], next_ids: Int[Tensor, "b s"], positions: Int[Tensor, "b s"], cache: LatentCache
    ) -> Float[Tensor, "b s m"]:
        """MTP module `index` (0-based) over a cache: h^index and Emb(t_{i+1+index}) to h^{index+1}, after shared_head.norm."""
        return self.mtp_modules[index].predict(hidden, self.model.embed_tokens(next_ids), self.context(positions, cache=cache))[0]

    @staticmethod
    def _same_segment(segment_ids: Tensor | None, token_mask: Tensor | None, ahead: int) -> Tensor | None:
        """Positions whose token `ahead` places on is real and of the same sample; None where all are."""
        if segment_ids is None or token_mask is None:
            return None
        return (segment_ids[:, :-ahead] == segment_ids[:, ahead:]) & token_mask[:, :-ahead] & token_mask[:, ahead:]

    @staticmethod
    def _masked(ids: Tensor, real: Tensor | None) -> Tensor:
        return ids if real is None else ids.masked_fill(~real, -1)

    def _output(
        self, hidden: Tensor, mtp_hidden: tuple[Tensor, ...], stats: list[tuple[BlockStats, Tensor | None, SequenceWeights | None]]
    ) -> Output:
        loads, losses = [], []
        for block_stats, real, sequences in stats:
            routing = block_stats.routing
            loads.append(balance.load_counts(routing.indices, self.config.n_routed_experts, None if real is None else real.reshape(-1)))
            if sequences is not None:
                losses.append(balance.sequence_balance_loss(routing.scores, self.config.num_experts_per_tok, sequences))
        return Output(
            hidden,
            mtp_hidden,
            tuple(block_stats.layer for block_stats, _, _ in stats),
            torch.stack(loads) if loads else None,
            torch.stack(losses).sum() if losses else None,
            tuple(block_stats.routing for block_stats, _, _ in stats),
        )


def segment_runs(segment_ids: Int[Tensor, "b s"]) -> tuple[tuple[int, ...], ...] | None:
    """Lengths of each row's segments in order; None where one comes back after another (padding, below 0, may)."""
    rows = []
    for row in segment_ids.cpu():
        ids, lengths = torch.unique_consecutive(row, return_counts=True)
        real = ids[ids >= 0]
        if len(real) != len(real.unique()):
            return None
        rows.append(tuple(lengths.tolist()))
    return tuple(rows)


def stacked_experts(model: CausalLM) -> list[tuple[str, GroupedLinear]]:
    """(name, layer) of every stacked expert projection, for those who present experts one by one."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, GroupedLinear)]
