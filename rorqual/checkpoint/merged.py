"""A model with its adapter added, row block by row block: what export writes and readers take, never whole in memory.

    with FolderSource(base) as source:
        convert(MergedSource(source, Adapter.read(run / "adapter")), tokenizer, out)

W + scale B A is formed in FP32 and rounded once to the weight's own dtype; of an FP8 weight the dequantised rows count, and what is
written in FP8 is quantised anew.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from rorqual.adapters.peft import Adapter
from rorqual.checkpoint.source import Source
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError


class MergedSource:
    """A Source over another one. CheckpointError for an adapter of a projection that the source lacks."""

    def __init__(self, source: Source, adapter: Adapter) -> None:
        self._source, self._adapter = source, adapter
        self._changed = {name for name in source.names() if adapter.delta(name, 0, 1) is not None}
        reached = {_stacked(name) for name in self._changed}
        absent = sorted(name for name in adapter.pairs if name not in reached and self.config.num_nextn_predict_layers)
        if absent:
            raise CheckpointError(f"the adapter changes {', '.join(absent[:3])}, which the base model lacks; it belongs to another model")

    @property
    def config(self) -> ModelConfig:
        """The base's."""
        return self._source.config

    @property
    def notices(self) -> list[str]:
        """The base's."""
        return self._source.notices

    def names(self) -> Iterator[str]:
        """The base's."""
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The base's."""
        return self._source.shape(name)

    def dtype(self, name: str) -> str:
        """The base's; BF16 where an FP8 weight was changed, which has no codes any more."""
        dtype = self._source.dtype(name)
        return "BF16" if dtype == "F8_E4M3" and name in self._changed else dtype

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows with what the adapter adds."""
        rows = self._source.rows(name, begin, end)
        added = self._adapter.delta(name, begin, end) if name in self._changed else None
        if added is None:
            return rows
        if added.shape != rows.shape:
            raise CheckpointError(
                f"the adapter's part for {name} has rows of {added.shape[1:]}, the weight has {rows.shape[1:]}; it belongs to another model"
            )
        return (rows.float() + added).to(rows.dtype)

    def codes(self, name: str, begin: int, end: int) -> Tensor:
        """Codes of an FP8 weight that the adapter leaves as it is."""
        return self._source.codes(name, begin, end)

    def scales(self, name: str) -> Tensor:
        """Scales of an FP8 weight that the adapter leaves as it is."""
        return self._source.scales(name)


def _stacked(name: str) -> str:
    """The projection of a weight, the stacked one for an expert's."""
    stem = name.removesuffix(".weight")
    layer, found, rest = stem.partition(".mlp.experts.")
    return f"{layer}.mlp.experts.{'down_proj' if rest.endswith('down_proj') else 'gate_up_proj'}" if found else stem
