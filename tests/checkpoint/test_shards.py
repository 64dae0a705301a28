"""Headers, indices and folders that are not what they should be are refused by name (field cases F05, F06)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rorqual.checkpoint.shards import INDEX_NAME, open_folder, read_header
from rorqual.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def tensor(begin: int = 0, end: int = 8, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_a_file_of_the_safetensors_library_is_read(tmp_path: Path) -> None:
    arrays = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.arange(3, dtype=np.int64),
        "e": np.zeros((0, 4), np.float16),
        "s": np.array(1.5, np.float32),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    entries = read_header(tmp_path / "x.safetensors")
    assert {name: (entry.dtype, entry.shape) for name, entry in entries.items()} == {
        "a": ("I64", (3,)), "b": ("F32", (2, 3)), "e": ("F16", (0, 4)), "s": ("F32", ())}  # fmt: skip
    raw = (tmp_path / "x.safetensors").read_bytes()
    for name, entry in entries.items():
        assert raw[entry.begin : entry.end] == arrays[name].tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, 12, "'b' starts at byte 4 of the data, 8 was expected"),
        ({"a": tensor(0, 8), "b": tensor(12, 20)}, 20, "'b' starts at byte 12"),
        ({"a": tensor(8, 0)}, 8, "'a' lies at bytes 8 to 0"),
        ({"a": tensor(0, 16, (4,))}, 8, "'a' lies at bytes 0 to 16, the data has 8"),
        ({"a": tensor(-8, 0)}, 8, "'a' has shape"),
        ({"a": tensor(0, 8, (3,))}, 8, r"'a' of shape \[3\] and dtype F32 does not fill its 8 bytes"),
        ({"a": tensor(0, 8, (2**40, 2**40))}, 8, "'a' of shape"),
        ({"a": tensor(0, 8, (-2, -1))}, 8, "'a' has shape"),
        ({"a": tensor(0, 8, (2.0,))}, 8, "'a' has shape"),
        ({"a": tensor(0, 8, "2")}, 8, "'a' has shape"),
        ({"a": tensor(0, 8, dtype="F4")}, 8, "'a' has the unknown dtype 'F4'"),
        ({"a": tensor(0, 8, dtype=["F32"])}, 8, "unknown dtype"),
        ({"a": 3}, 0, "'a' of the header is not an object"),
        ({"a": tensor(0, 8)}, 9, "its tensors end at"),
        ([1], 0, "header is a list"),
        (b'{"a": 1, "a": 2}', 0, "'a' twice"),
        (b"[" * 100_000, 0, "not JSON"),
        (b"\xff\xff", 0, "not JSON"),
    ],
)
def test_layouts_that_lie_are_refused(tmp_path: Path, header: Any, data: int, message: str) -> None:
    path = write(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 100, 1, 0])
def test_header_lengths_that_lie_are_refused(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x.safetensors", b" " * 12, length=length)
    with pytest.raises(CheckpointError, match=f"20 bytes with a header length of {length}"):
        read_header(path)


@pytest.mark.parametrize("size", range(8))
def test_files_too_short_for_a_length_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.safetensors").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read_header(tmp_path / "x.safetensors")


def test_hostile_headers_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    """Under a limit of 100 MB on top of the interpreter, in a process of its own."""
    with write(tmp_path / "x.safetensors", b"", length=90_000_000).open("ab") as file:
        file.truncate(10**12)  # sparse: a terabyte that claims a header of 90 MB of zero bytes
    write(tmp_path / "y.safetensors", b" " * 12, length=2**63 - 1)
    code = (
        "import sys; from pathlib import Path; from rorqual.checkpoint.shards import read_header\n"
        "from rorqual.errors import CheckpointError\n"
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (400_000_000, 400_000_000))\n"
        "for name in sys.argv[1:]:\n"
        "    try: read_header(Path(name)); raise SystemExit('accepted')\n"
        "    except CheckpointError: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "y.safetensors"), str(tmp_path / "x.safetensors")], check=True, timeout=20)
    assert time.monotonic() - started < 10


def test_pipes_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_folder(tmp_path)
    os.mkfifo(tmp_path / INDEX_NAME)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_folder(tmp_path)


# ---------------------------------------------------------------------- folders


def shard(folder: Path, name: str, **arrays: Any) -> None:
    safetensors.numpy.save_file({key: np.full(4, value, np.float32) for key, value in arrays.items()}, folder / name)


def index(folder: Path, weight_map: Any, **rest: Any) -> None:
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map, **rest}))


TWO = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    shard(tmp_path, TWO["a"], a=1)
    shard(tmp_path, TWO["b"], b=2)
    return tmp_path


@pytest.mark.parametrize(
    "metadata", [{}, {"metadata": {}}, {"metadata": None}, {"metadata": {"total_size": 32}}, {"metadata": {"total_size": "?"}}]
)
def test_index_metadata_is_optional(sharded: Path, metadata: dict[str, Any]) -> None:
    index(sharded, TWO, **metadata)
    found = open_folder(sharded)
    assert {name: entry.file.name for name, entry in found.tensors.items()} == TWO and found.notices == []


def test_a_wrong_total_size_is_a_notice(sharded: Path) -> None:
    index(sharded, TWO, metadata={"total_size": 7})
    assert open_folder(sharded).notices == [f"{INDEX_NAME} gives total_size 7, the files hold 32 bytes of tensors"]


def test_shards_without_an_index_and_a_single_file(sharded: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert set(open_folder(sharded).tensors) == {"a", "b"}
    single = tmp_path_factory.mktemp("single")
    shard(single, "model.safetensors", a=1)
    assert set(open_folder(single).tensors) == {"a"}


def test_files_beside_the_index_are_ignored_with_a_notice(sharded: Path) -> None:
    index(sharded, TWO)
    shard(sharded, "adapter.safetensors", c=3)
    found = open_folder(sharded)
    assert set(found.tensors) == {"a", "b"} and "'adapter.safetensors'" in found.notices[0]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({**TWO, "a": "../../outside.safetensors"}, r"'a' in '../../outside.safetensors'; only safetensors files inside"),
        ({**TWO, "a": "/etc/outside.safetensors"}, "only safetensors files inside"),
        ({**TWO, "a": "..\\outside.safetensors"}, "only safetensors files inside"),
        ({**TWO, "a": "..safetensors"}, "only safetensors files inside"),
        ({**TWO, "a": "pytorch_model.bin"}, "only safetensors files inside"),
        ({**TWO, "a": 1}, "only safetensors files inside"),
        ({**TWO, "c": "model-00003-of-00003.safetensors"}, "'model-00003-of-00003.safetensors', which .* does not hold"),
        ({**TWO, "c": TWO["a"]}, "places tensor 'c' in .*, but no file has it"),
        ({"a": TWO["a"], "b": TWO["a"]}, "places tensor 'b' in model-00001-of-00002.safetensors, but no file has it"),
        ({"a": TWO["b"], "b": TWO["a"]}, "places tensor 'a' in model-00002-of-00002.safetensors, but it is in model-00001"),
        ({"a": TWO["a"], "x": TWO["b"]}, "'x'"),
        ({}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(sharded: Path, weight_map: Any, message: str) -> None:
    index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=message):
        open_folder(sharded)


def test_a_tensor_that_the_index_does_not_list_is_refused(sharded: Path) -> None:
    shard(sharded, TWO["b"], b=2, c=3)
    index(sharded, TWO)
    with pytest.raises(CheckpointError, match="does not list 'c'"):
        open_folder(sharded)


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    shard(sharded, TWO["b"], a=2, b=2)
    with pytest.raises(CheckpointError, match=r"'a' is in model-00001-of-00002.safetensors and in model-00002"):
        open_folder(sharded)


def test_an_incomplete_set_of_shards_is_refused(sharded: Path) -> None:
    (sharded / TWO["b"]).unlink()
    with pytest.raises(CheckpointError, match="holds 1 of the 2 files"):
        open_folder(sharded)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(CheckpointError, match="'pytorch_model.bin' but no safetensors file; pickled weights can run code"):
        open_folder(tmp_path)
    assert not marker.exists()


def test_empty_and_absent_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        open_folder(tmp_path)
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_folder(tmp_path / "no")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_truncation_is_refused(sharded: Path, data: st.DataObject) -> None:
    path = sharded / TWO["b"]
    shard(sharded, TWO["b"], b=2, c=3)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_folder(sharded)
