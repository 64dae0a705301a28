"""Reading and converting folders: open to every byte read and validated, first logit, FP8 to BF16, memory of a conversion.

    python benchmarks/checkpoints.py [--gigabytes 1] [--tensor-gigabytes 4] [--folder DIR]

Makes a folder of one MoE model in FP8 of the size asked for (random codes), measures, deletes it. `cold` drops the files from the page
cache first, where the system lets a program do so, and compares with `cat` of the same files, dropped in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import emit

from rorqual.checkpoint import hf
from rorqual.checkpoint.convert import convert
from rorqual.checkpoint.source import FolderSource
from rorqual.checkpoint.verify import verify
from rorqual.config import ModelConfig
from rorqual.kernels import fp8
from rorqual.planner.inventory import FP8_QUANTIZATION, inventory

GB = 1e9


def write_random(folder: Path, config: ModelConfig, shard_bytes: float = 5e8) -> int:
    """A folder in the official FP8 layout with random codes and plausible scales, written in pieces; returns its bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    shards: list[list] = [[]]
    for one in inventory(config):
        if shards[-1] and sum(x.bytes for x in shards[-1]) + one.bytes > shard_bytes and not one.name.endswith("_scale_inv"):
            shards.append([])
        shards[-1].append(one)
    generator, weight_map, total = np.random.default_rng(0), {}, 0
    for number, part in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):06d}.safetensors"
        ordered = sorted(part, key=lambda one: one.dtype == "F8_E4M3")
        header, end = {}, 0
        for one in sorted(ordered, key=lambda one: {"F32": 0, "BF16": 1}.get(one.dtype, 2)):
            header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [end, end + one.bytes]}
            end += one.bytes
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for key, value in header.items():
                size = value["data_offsets"][1] - value["data_offsets"][0]
                for at in range(0, size, 1 << 26):
                    count = min(1 << 26, size - at)
                    if value["dtype"] == "F8_E4M3":
                        raw = generator.integers(0, 0x70, count, dtype=np.uint8)
                    elif value["dtype"] == "F32":
                        raw = np.full(count // 4, 1e-3, np.float32)
                    else:
                        raw = np.full(count // 2, 0x3C00, np.uint16)
                    file.write(raw.tobytes())
                weight_map[key] = name
        total += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return total


def drop(folder: Path) -> bool:
    """Asks the system to forget the files' pages; whether it can be asked at all."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return True


def cat(folder: Path) -> float:
    """Seconds of `cat` of all files to nowhere."""
    began = time.perf_counter()
    with open(os.devnull, "wb") as nowhere:
        subprocess.run(["cat", *map(str, sorted(folder.glob("*.safetensors")))], stdout=nowhere, check=True)
    return time.perf_counter() - began


def reading(folder: Path, num_bytes: int, kept: str) -> None:
    """Cold and warm verification, and the first logit."""
    could = drop(folder)
    peer = cat(folder)
    drop(folder)
    cold = verify(folder).seconds
    emit("verify_cold_seconds", cold, peer, cold / peer, peer_name="cat", bytes=num_bytes, page_cache_dropped=could)
    warm = min(verify(folder).seconds for _ in range(3))
    emit("verify_warm_seconds", warm, None, None, bytes=num_bytes, gb_per_second=num_bytes / warm / GB)
    began = time.perf_counter()
    model, _ = hf.load(folder, weights=kept)
    loaded = time.perf_counter() - began
    with torch.no_grad():
        model.logits(model(torch.tensor([[1]])).hidden)
    emit("first_logit_seconds", time.perf_counter() - began, None, None, weights=kept, load_seconds=loaded)


def kernel() -> None:
    """Dequantisation alone, one thread, against a table look-up with numpy."""
    torch.set_num_threads(1)
    codes = torch.randint(0, 0x70, (4096, 7168), dtype=torch.uint8)
    scales, out = torch.full((32, 56), 1e-3), torch.empty(4096, 7168, dtype=torch.bfloat16)
    table = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.bfloat16).view(torch.uint16).numpy()
    place = np.empty(codes.shape, np.uint16)

    def best(run) -> float:  # type: ignore[no-untyped-def]
        times = []
        for _ in range(7):
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        return min(times)

    ours = best(lambda: fp8.dequantize(codes, scales, (128, 128), out=out))
    peer = best(lambda: np.take(table, codes.numpy(), out=place))
    size = out.numel() * 2 / GB
    emit("fp8_to_bf16_gb_per_second_per_core", size / ours, size / peer, peer / ours, peer_name="numpy.take, without scales")


def converting(folder: Path, out: Path) -> None:
    """The whole conversion, one thread, beside writing as many zero bytes to the same disk."""
    torch.set_num_threads(1)
    with FolderSource(folder) as source:
        began = time.perf_counter()
        convert(source, None, out, to="bf16")
    seconds = time.perf_counter() - began
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    piece, began = bytes(1 << 26), time.perf_counter()
    with (out / "zeros").open("wb") as file:
        for _ in range(size // len(piece)):
            file.write(piece)
        os.fsync(file.fileno())
    disk = time.perf_counter() - began
    emit(
        "convert_fp8_to_bf16_gb_per_second",
        size / seconds / GB,
        size / disk / GB,
        disk / seconds,
        peer_name="writing and syncing zeros",
        seconds=seconds,
    )


_WATCHED = """
import re, sys, threading, time
from rorqual.checkpoint.source import FolderSource
from rorqual.checkpoint.convert import convert
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]))
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
convert(FolderSource(sys.argv[1]), None, sys.argv[2], to="bf16")
print("peak", peak[0])
"""


def memory(root: Path, gigabytes: float) -> None:
    """Anonymous memory of a process that converts a folder with one tensor of that size."""
    config = ModelConfig(
        vocab_size=512, hidden_size=128, intermediate_size=int(gigabytes * GB / 128), num_hidden_layers=1, first_k_dense_replace=1, n_routed_experts=0,
        n_shared_experts=0, num_attention_heads=2, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16,
        num_nextn_predict_layers=0, quantization_config=dict(FP8_QUANTIZATION),
    )  # fmt: skip
    num_bytes = write_random(root / "large", config, 1e15)
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, str(root / "large"), str(root / "larger")], capture_output=True, text=True, check=True
    )
    peak = re.search(r"peak (\d+)", done.stdout)
    emit(
        "convert_peak_anonymous_gb",
        int(peak[1]) * 1024 / GB if peak else float("nan"),
        None,
        None,
        folder_bytes=num_bytes,
        tensor_gigabytes=gigabytes,
    )


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the FP8 folder")
    parser.add_argument(
        "--tensor-gigabytes", type=float, default=4.0, help="of the one tensor whose conversion's memory is measured; 0 leaves it out"
    )
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    experts = max(8, round(args.gigabytes * GB / (4 * 3 * 1024 * 2048) / 8) * 8)
    config = ModelConfig(
        vocab_size=8192, hidden_size=2048, intermediate_size=4096, moe_intermediate_size=1024, num_hidden_layers=5, first_k_dense_replace=1,
        n_routed_experts=experts, n_group=1, topk_group=1, num_experts_per_tok=4, num_attention_heads=8, q_lora_rank=512, kv_lora_rank=256,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, num_nextn_predict_layers=0, quantization_config=dict(FP8_QUANTIZATION),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.folder) as root:
        folder = Path(root) / "fp8"
        num_bytes = write_random(folder, config)
        reading(folder, num_bytes, "fp8")
        kernel()
        converting(folder, Path(root) / "bf16")
        if args.tensor_gigabytes:
            memory(Path(root), args.tensor_gigabytes)


if __name__ == "__main__":
    main()
