"""Where tensors come from: a verified folder, read in slices through a memory map, or tensors in memory, under one set of names.

    with FolderSource("DeepSeek-V3", layers=(0, 4)) as source:
        source.rows("model.layers.3.self_attn.o_proj.weight", 0, 128)     # BF16, dequantised if the file has FP8

Readers, converters and exporters ask a Source for row blocks and never for a whole model, so that memory is one block whatever the
size. Everything about the folder is verified before the first byte of data is read: names, shapes, dtypes, scales (F05-F09, F17).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rorqual.checkpoint.names import BIAS, SCALE, Match, expected, match, quantised
from rorqual.checkpoint.shards import Entry, ShardFolder, open_folder, some
from rorqual.checkpoint.tensors import DTYPE_NAMES, DTYPES
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError
from rorqual.kernels import fp8
from rorqual.planner.inventory import FP8_QUANTIZATION, fp8_block_size

WEIGHT_DTYPES = ("F32", "BF16", "F16")
SCALE_DTYPES = ("F32", "BF16", "F8_E8M0")
_PAGE = mmap.PAGESIZE


class Source(Protocol):
    """Tensors of one model under their official names, in row blocks. Copies in MTP modules and scales are not names of their own."""

    @property
    def config(self) -> ModelConfig:
        """Settled; `quantization_config` is that of the tensors, None where they are plain."""
        ...

    @property
    def notices(self) -> list[str]:
        """What was odd but harmless."""
        ...

    def names(self) -> Iterator[str]:
        """All names, in the order of the model."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        ...

    def dtype(self, name: str) -> str:
        """Stored dtype as safetensors spells it."""
        ...

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows (of a vector: elements) begin..end-1 in their stored dtype; FP8 dequantised and rounded once to BF16."""
        ...

    def codes(self, name: str, begin: int, end: int) -> Tensor:
        """Of an FP8 tensor: the E4M3 codes of these rows as uint8."""
        ...

    def scales(self, name: str) -> Tensor:
        """Of an FP8 tensor: all its scales in their stored dtype."""
        ...


@dataclass(frozen=True)
class Accounts:
    """What became of every name of a folder."""

    loaded: list[str]
    skipped: list[str]
    missing: list[str]


@dataclass
class _Verified:
    """A folder whose names, shapes, dtypes and scales agree with its configuration."""

    config: ModelConfig
    shards: ShardFolder
    found: Match
    scales: dict[str, str]  # official name of an FP8 weight -> name of its scales in the folder
    notices: list[str] = field(default_factory=list)


class FolderSource:
    """A folder of the family, memory-mapped. Raises ConfigError or CheckpointError, before any data is read, for whatever does not fit.

    `layers=(a, b)` keeps the trunk's layers a..b-1, renumbered from 0, with embedding, final norm and head; MTP modules stay only
    with the last layer, and only if `mtp`. Pages are given back behind the reader, so that a large folder does not fill the memory.
    """

    def __init__(self, path: str | Path, *, layers: tuple[int, int] | None = None, mtp: bool = True) -> None:
        self.path = Path(path)
        verified = _verify(self.path)
        self.full_config, self.notices = verified.config, verified.notices
        self.config, self._origin = _part(verified.config, layers, mtp)
        self._entries = verified.shards.tensors
        self._sources, self._scales = verified.found.sources, verified.scales
        self.repeated = dict(verified.found.repeated)
        self._block = fp8_block_size(verified.config)
        self.files = verified.shards.files
        self._maps: dict[Path, np.memmap[Any, np.dtype[np.uint8]]] = {}
        self._last: tuple[Path, int, int] | None = None
        self._found = verified.found

    def __enter__(self) -> FolderSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the maps; tensors handed out before stay valid."""
        self._maps.clear()
        self._last = None

    def names(self) -> Iterator[str]:
        """All names, in the order of the model."""
        return (name for name, _ in expected(self.config))

    def stored_name(self, name: str) -> str:
        """The folder's own spelling of an official name."""
        return self._sources[self._origin(name)]

    def entry(self, name: str) -> Entry:
        """Where a tensor lies."""
        return self._entries[self.stored_name(name)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """Stored dtype as safetensors spells it."""
        return self.entry(name).dtype

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows begin..end-1; see Source. The result may share memory with the map: copy what is kept."""
        if self.dtype(name) != "F8_E4M3":
            return self._read(self.entry(name), begin, end)
        assert self._block is not None
        return fp8.dequantize(self.codes(name, begin, end), self.scales(name), self._block, first_row=begin)

    def codes(self, name: str, begin: int, end: int) -> Tensor:
        """Codes of an FP8 tensor's rows."""
        if self.dtype(name) != "F8_E4M3":
            raise CheckpointError(f"tensor {name!r} is {self.dtype(name)}, it has no FP8 codes")
        return self._read(self.entry(name), begin, end).view(torch.uint8)

    def scales(self, name: str) -> Tensor:
        """Scales of an FP8 tensor, a copy."""
        stored = self._scales.get(self._origin(name))
        if stored is None:
            raise CheckpointError(f"tensor {name!r} is {self.dtype(name)}, it has no FP8 scales")
        entry = self._entries[stored]
        return self._read(entry, 0, entry.shape[0], keep=True).clone()

    def accounts(self) -> Accounts:
        """Names loaded, skipped and missing, by the folder's own spelling; of a part of the layers, the other layers are skipped."""
        used = {self.stored_name(name) for name in self.names()}
        used |= {self._scales[self._origin(name)] for name in self.names() if self._origin(name) in self._scales}
        copies = [stored for stored in self.repeated if self.config.num_nextn_predict_layers or not stored.startswith("model.layers.")]
        used.update(copies)
        loaded = [name for name in self._entries if name in used]
        left = [name for name in self._entries if name not in used]
        return Accounts(loaded, left, list(self._found.missing))

    def raw(self, stored: str) -> NDArray[np.uint8]:
        """All bytes of a tensor of the folder, by its own name."""
        entry = self._entries[stored]
        return np.asarray(self._map(entry.file)[entry.begin : entry.end])

    def release(self, stored: str) -> None:
        """Gives the pages of a tensor back to the system."""
        entry = self._entries[stored]
        self._last = entry.file, entry.begin, entry.end
        self._give_back()
        self._last = None

    def stored_names(self) -> Iterable[str]:
        """Every name of the folder, scales and copies included."""
        return self._entries

    def stored_entry(self, stored: str) -> Entry:
        """Where a tensor of that stored name lies."""
        return self._entries[stored]

    def _map(self, path: Path) -> np.memmap[Any, np.dtype[np.uint8]]:
        if path not in self._maps:
            try:
                self._maps[path] = np.memmap(path, dtype=np.uint8, mode="c")  # private: torch wants writable memory, nothing is written
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
        return self._maps[path]

    def _read(self, entry: Entry, begin: int, end: int, keep: bool = False) -> Tensor:
        mapped = self._map(entry.file)
        row = (entry.end - entry.begin) // entry.shape[0] if entry.shape and entry.shape[0] else 0
        start, stop = entry.begin + begin * row, entry.begin + end * row
        if not keep:
            self._give_back()
            self._last = entry.file, start, stop
        part = torch.from_numpy(np.asarray(mapped[start:stop]))
        dtype = DTYPES[entry.dtype]
        if start % dtype.itemsize:  # a file whose data is not aligned
            part = part.clone()
        return part.view(dtype).view(end - begin, *entry.shape[1:])

    def _give_back(self) -> None:
        """Drops the pages of the slice read before: they are in the file, and need not be in this process."""
        if self._last is None:
            return
        path, start, stop = self._last
        first = -(-start // _PAGE) * _PAGE
        inner: Any = getattr(self._maps.get(path), "_mmap", None)
        if inner is not None and stop - first >= _PAGE and hasattr(mmap, "MADV_DONTNEED"):
            inner.madvise(mmap.MADV_DONTNEED, first, (stop - first) // _PAGE * _PAGE)


def _verify(path: Path) -> _Verified:
    config = ModelConfig.from_file(path)
    shards = open_folder(path)
    plain = {name: entry for name, entry in shards.tensors.items() if not name.endswith(SCALE)}
    found = match(config, {name: entry.shape for name, entry in plain.items()})
    notices = shards.notices + found.notices
    in_fp8 = [official for official, name in found.sources.items() if plain[name].dtype == "F8_E4M3"]
    config = found.config
    if in_fp8 and config.quantization_config is None:
        config = config.with_(quantization_config=dict(FP8_QUANTIZATION))
        notices.append(
            "weights are FP8, config.json has no quantization_config: read with blocks of 128 x 128, which the scales' shapes fit"
        )
    elif not in_fp8 and config.quantization_config is not None:
        config = config.with_(quantization_config=None)
        notices.append("config.json has quantization_config, the weights are not quantised: read as they are")
    scales = _match_scales(config, shards, found, in_fp8)
    _check_dtypes(found, plain)
    biases = [name for name in found.sources if name.endswith(BIAS) and plain[found.sources[name]].dtype != "F32"]
    if biases:
        stored = plain[found.sources[biases[0]]].dtype
        notices.append(f"router bias is stored as {stored} in {len(biases)} layer(s), raised to FP32: what rounding took from it is lost")
    return _Verified(config, shards, found, scales, notices)


def _match_scales(config: ModelConfig, shards: ShardFolder, found: Match, in_fp8: list[str]) -> dict[str, str]:
    """{official weight: stored name of its scales}; every FP8 weight has scales of the right shape, nothing else has any."""
    block = fp8_block_size(config)
    scales: dict[str, str] = {}
    for official in in_fp8:
        stored = found.sources[official]
        entry, name = shards.tensors[stored], stored + SCALE
        if not quantised(official):
            raise CheckpointError(f"tensor {stored!r} is FP8; the layout keeps it in BF16: convert the folder again")
        if name not in shards.tensors:
            raise CheckpointError(f"tensor {stored!r} is FP8 but {name!r} is missing: without its scales the weight has no value")
        assert block is not None
        want, scale = fp8.scale_shape(entry.shape[0], entry.shape[1], block), shards.tensors[name]
        if scale.shape != want:
            raise CheckpointError(
                f"tensor {name!r} has shape {list(scale.shape)}; blocks of {block[0]} x {block[1]} make it {list(want)} for a weight of {list(entry.shape)}: "
                "check quantization_config.weight_block_size"
            )
        if scale.dtype not in SCALE_DTYPES:
            raise CheckpointError(f"tensor {name!r} has dtype {scale.dtype}; scales must be one of {', '.join(SCALE_DTYPES)}")
        scales[official] = name
    used = set(scales.values())
    left = [name for name in shards.tensors if name.endswith(SCALE) and name not in used]
    skipped = {name + SCALE for name in found.skipped}
    stray = [name for name in left if name not in skipped]
    if stray:
        raise CheckpointError(
            f"{some(stray)}: scales without an FP8 weight beside them; the folder is incomplete, or was converted without dropping them"
        )
    found.skipped += [name for name in left if name in skipped]
    return scales


def _check_dtypes(found: Match, entries: Mapping[str, Entry]) -> None:
    for name in [*found.sources.values(), *found.repeated]:
        dtype = entries[name].dtype
        if dtype not in WEIGHT_DTYPES and dtype != "F8_E4M3":
            raise CheckpointError(
                f"tensor {name!r} has dtype {dtype}; weights must be one of {', '.join(WEIGHT_DTYPES)}, or F8_E4M3 with scales"
            )
    for name in found.repeated:
        if entries[name].dtype == "F8_E4M3":
            raise CheckpointError(f"tensor {name!r} is FP8; a copy of embedding or head is kept in BF16")


def _part(config: ModelConfig, layers: tuple[int, int] | None, mtp: bool) -> tuple[ModelConfig, Any]:
    """(configuration of the part, function from the part's names to the folder's official ones)."""
    depth = config.num_hidden_layers
    first, last = (0, depth) if layers is None else layers
    if not 0 <= first < last <= depth:
        raise CheckpointError(f"layers {first}:{last} must be a range inside 0:{depth}, the trunk of this model")
    if first % config.moe_layer_freq:
        raise CheckpointError(f"layers must begin at a multiple of moe_layer_freq ({config.moe_layer_freq}), not at {first}")
    modules = config.num_nextn_predict_layers if mtp and last == depth else 0
    kept = last - first
    dense = min(max(config.first_k_dense_replace - first, 0), kept)
    part = config.with_(num_hidden_layers=kept, first_k_dense_replace=dense, num_nextn_predict_layers=modules)

    def origin(name: str) -> str:
        if not name.startswith("model.layers."):
            return name
        number, _, tail = name.removeprefix("model.layers.").partition(".")
        return f"model.layers.{int(number) + first}.{tail}"

    return part, origin


class ModelSource:
    """The same over tensors in memory: a model's, or a moving average of them, by official name. CheckpointError for what is missing or misshapen."""

    def __init__(self, config: ModelConfig, named: Mapping[str, Tensor]) -> None:
        self.config = config.settled().with_(quantization_config=None)
        self.notices: list[str] = []
        self._named = named
        for name, shape in expected(config):
            if name not in named:
                raise CheckpointError(f"cannot export: tensor {name!r} is missing")
            if tuple(named[name].shape) != shape:
                raise CheckpointError(
                    f"cannot export: tensor {name!r} has shape {list(named[name].shape)}, the configuration makes it {list(shape)}"
                )

    def names(self) -> Iterator[str]:
        """All names, in the order of the model."""
        return (name for name, _ in expected(self.config))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._named[name].shape)

    def dtype(self, name: str) -> str:
        """Its dtype as safetensors spells it."""
        return DTYPE_NAMES[self._named[name].dtype]

    def rows(self, name: str, begin: int, end: int) -> Tensor:
        """Rows begin..end-1 on the CPU; the result may share memory with the tensor."""
        return self._named[name].detach()[begin:end].cpu()

    def codes(self, name: str, begin: int, end: int) -> Tensor:
        """There are none in memory."""
        raise CheckpointError(f"tensor {name!r} is {self.dtype(name)}, it has no FP8 codes")

    def scales(self, name: str) -> Tensor:
        """There are none in memory."""
        raise CheckpointError(f"tensor {name!r} is {self.dtype(name)}, it has no FP8 scales")
