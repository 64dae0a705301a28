"""Storage of torch.distributed.checkpoint on safetensors files and one JSON index: nothing is ever pickled to disk.

    step-00000100/
        shard-00000.safetensors     what rank 0 wrote; one file per rank that had anything to write
        index.json                  {format, checksum, body: {tensors: {name: {dtype, shape, chunks}}, files: {name: bytes}, state}}

torch's own reader unpickles `.metadata`, which a folder from someone else could use to run code (field case F06). A tensor may
be stored in several chunks, each with its offsets in the whole, so that any layout reads what any other wrote.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from rorqual.checkpoint import tensors
from rorqual.checkpoint.folder import finish, require_space, start, temporary
from rorqual.checkpoint.shards import Entry, read_header, some
from rorqual.errors import CheckpointError

INDEX_NAME = "index.json"
FORMAT = 1
_MAX_INDEX_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Chunk:
    """One stored piece of a tensor: its place in the whole, where its bytes lie, and their CRC-32."""

    entry: Entry
    offsets: tuple[int, ...]
    checksum: int


class SafetensorsWriter(StorageWriter):
    """Writes `final` under its temporary name; the coordinator's `finish` makes it appear whole."""

    def __init__(self, final: Path, state: Mapping[str, Any], replace: bool = False) -> None:
        self.final, self.state, self.replace = final, state, replace
        self.checkpoint_id = str(final)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A writer serves one save; there is nothing to reset."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The coordinator makes the folder before any rank writes: plans are exchanged in between."""
        if is_coordinator:
            start(self.final, self.replace)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The local plan as it is; state that is not a tensor belongs into the JSON state."""
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise CheckpointError(f"{item.index.fqn!r} is not a tensor; numbers and strings go into the state")
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Gives every rank its file name."""
        return [dataclasses.replace(plan, storage_data=f"shard-{rank:05d}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this rank's chunks into its one file."""
        names = {_chunk_name(item): item for item in plan.items}
        items = [tensors.Item(name, _dtype(item), tuple(_sizes(item)), _values(planner, item)) for name, item in names.items()]
        folder = temporary(self.final)
        require_space(folder, sum(one.num_bytes for one in items))
        checksums = tensors.write_file(folder / plan.storage_data, items) if items else {}
        results = [
            WriteResult(item.index, one.num_bytes, (plan.storage_data, one.name, checksums[one.name]))
            for one, item in zip(items, names.values(), strict=True)
        ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the index, syncs everything, renames the folder into place."""
        folder = temporary(self.final)
        written = {(result.index.fqn, tuple(result.index.offset or ())): result.storage_data for part in results for result in part}
        table = {}
        for name, meta in metadata.state_dict_metadata.items():
            if not isinstance(meta, TensorStorageMetadata):
                raise CheckpointError(f"{name!r} is not a tensor; numbers and strings go into the state")
            chunks = []
            for chunk in meta.chunks:
                file, key, checksum = written[name, tuple(chunk.offsets)]
                chunks.append([file, key, list(chunk.offsets), list(chunk.sizes), checksum])
            table[name] = {"dtype": tensors.DTYPE_NAMES[meta.properties.dtype], "shape": list(meta.size), "chunks": chunks}
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("shard-*.safetensors"))}
        body = json.dumps({"tensors": table, "files": files, "state": self.state}, separators=(",", ":"))
        text = f'{{"format":{FORMAT},"checksum":{zlib.crc32(body.encode())},"body":{body}}}\n'
        (folder / INDEX_NAME).write_text(text, encoding="utf-8")
        finish(self.final)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Any path will do."""
        return True


class SafetensorsReader(StorageReader):
    """Reads a folder of `SafetensorsWriter`, whatever the number of ranks that wrote it.

    Index, file sizes and headers are verified when it is made; checksums as the chunks are read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        body = read_index(folder)
        self.state: dict[str, Any] = body["state"]
        self.chunks: dict[MetadataIndex, Chunk] = {}
        self.metadata = Metadata({}, storage_data=self.chunks)
        headers = {name: self._header(name, size) for name, size in body["files"].items()}
        for name, value in body["tensors"].items():
            try:
                self._add(name, value, headers)
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{folder / INDEX_NAME}: the entry of tensor {name!r} does not fit the files ({error!r})") from None

    def _header(self, name: str, size: int) -> dict[str, Entry]:
        path = self.folder / name
        if Path(name).name != name:
            raise CheckpointError(f"{self.folder / INDEX_NAME} names the file {name!r}; only files inside the folder are read")
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; the checkpoint is not whole: resume from an earlier one")
        if path.stat().st_size != size:
            raise CheckpointError(
                f"{path} is {path.stat().st_size} bytes, {size} were written; the file is truncated or corrupt: resume from an earlier checkpoint"
            )
        return read_header(path)

    def _add(self, name: str, value: Mapping[str, Any], headers: Mapping[str, Mapping[str, Entry]]) -> None:
        shape, places = torch.Size(value["shape"]), []
        for file, key, offsets, sizes, checksum in value["chunks"]:
            entry = headers[file][key]
            inside = len(offsets) == len(sizes) == len(shape) and all(
                o >= 0 and o + s <= whole for o, s, whole in zip(offsets, sizes, shape, strict=True)
            )
            if not inside or entry.shape != tuple(sizes) or entry.dtype != value["dtype"]:
                raise ValueError(f"chunk {key} of {file}")
            places.append(ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            self.chunks[MetadataIndex(name, torch.Size(offsets))] = Chunk(entry, tuple(offsets), checksum)
        if sum(place.sizes.numel() for place in places) != shape.numel():
            raise ValueError("its chunks do not fill it")
        self.metadata.state_dict_metadata[name] = TensorStorageMetadata(TensorProperties(tensors.DTYPES[value["dtype"]]), shape, places)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """A reader serves one folder; there is nothing to reset."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The verified index."""
        return self.metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the files are opened as they are read."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The local plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads chunk by chunk in file order, straight into the target where the whole chunk is wanted."""
        wanted = [(self.chunks[item.storage_index], item) for item in plan.items]
        wanted.sort(key=lambda pair: (pair[0].entry.file, pair[0].entry.begin))
        path, file = None, None
        try:
            for chunk, item in wanted:
                if chunk.entry.file != path:
                    if file is not None:
                        file.close()
                    path, file = chunk.entry.file, chunk.entry.file.open("rb")
                assert file is not None
                target = planner.resolve_tensor(item).detach()
                if tuple(item.lengths) == chunk.entry.shape:
                    tensors.read_into(file, chunk.entry, target, chunk.checksum)
                else:
                    whole = tensors.read(file, chunk.entry, chunk.checksum)
                    part = tuple(slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True))
                    target.copy_(whole[part])
                planner.commit_tensor(item, target)
        finally:
            if file is not None:
                file.close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether the folder has an index."""
        return (Path(checkpoint_id) / INDEX_NAME).is_file()


class StrictLoadPlanner(DefaultLoadPlanner):
    """Refuses a checkpoint that does not fit the tensors to be filled: by name, shape, dtype, or with tensors left over.

    The checks are steps of the load, so that with several ranks an error on one is an error on all.
    """

    def __init__(self, folder: Path, partial: bool) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.folder, self.partial = folder, partial

    def create_local_plan(self) -> LoadPlan:
        """What this rank wants; names, shapes and dtypes are compared first."""
        assert self.metadata is not None
        stored = self.metadata.state_dict_metadata
        missing = [name for name in self.state_dict if name not in stored]
        if missing:
            raise CheckpointError(f"{self.folder} lacks {some(missing)}; it belongs to another model or optimiser")
        for name, tensor in self.state_dict.items():
            meta = stored[name]
            assert isinstance(meta, TensorStorageMetadata)
            if meta.size != tensor.shape or meta.properties.dtype != tensor.dtype:
                raise CheckpointError(
                    f"{self.folder}: tensor {name!r} is {meta.properties.dtype} {list(meta.size)}, this run has {tensor.dtype} {list(tensor.shape)}; it belongs to another configuration"
                )
        return super().create_local_plan()

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        """All ranks' plans; what none of them wants would be lost."""
        assert self.metadata is not None
        if not self.partial:
            wanted = {item.dest_index.fqn for plan in global_plan for item in plan.items}
            stored = self.metadata.state_dict_metadata.items()
            extra = [name for name, meta in stored if name not in wanted and isinstance(meta, TensorStorageMetadata) and meta.size.numel()]
            if extra:
                raise CheckpointError(
                    f"{self.folder} holds {some(extra)}, which this run has no place for; it belongs to another model or optimiser"
                )
        return super().create_global_plan(global_plan)


def read_index(folder: Path) -> dict[str, Any]:
    """The body of a checkpoint's index, its checksum verified; CheckpointError with the file's name otherwise."""
    path = folder / INDEX_NAME
    try:
        if not path.is_file():
            raise CheckpointError(f"{folder} is not a training checkpoint: it has no {INDEX_NAME}")
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{path} is {path.stat().st_size} bytes; an index is at most {_MAX_INDEX_BYTES}")
        text = path.read_text(encoding="utf-8")
        table = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is corrupt: {error}; resume from an earlier checkpoint") from None
    if not isinstance(table, dict) or table.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {table.get('format') if isinstance(table, dict) else None!r}; this version reads format {FORMAT}"
        )
    body = text[text.find('"body":') + 7 : text.rfind("}")]
    if table.get("checksum") != zlib.crc32(body.encode()):
        raise CheckpointError(f"{path} is corrupt: its checksum is wrong; resume from an earlier checkpoint")
    return table["body"]  # type: ignore[no-any-return]


def _chunk_name(item: WriteItem) -> str:
    """The tensor's own name for a whole tensor; with the offsets behind for a piece of one."""
    assert item.tensor_data is not None
    whole = tuple(item.tensor_data.size) == tuple(_sizes(item))
    return item.index.fqn if whole else f"{item.index.fqn}@{','.join(map(str, item.tensor_data.chunk.offsets))}"


def _sizes(item: WriteItem) -> torch.Size:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes


def _dtype(item: WriteItem) -> torch.dtype:
    assert item.tensor_data is not None
    return item.tensor_data.properties.dtype


def _values(planner: SavePlanner, item: WriteItem) -> Callable[[], torch.Tensor]:
    def resolve() -> torch.Tensor:
        values = planner.resolve_data(item)
        assert isinstance(values, torch.Tensor)
        return values

    return resolve
