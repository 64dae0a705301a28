"""Every Triton kernel compiles to a GPU's machine code with the widths of DeepSeek-V3; values are checked by test_triton_rows.py.

No device is needed to compile. Products load the next tiles while they multiply, tensor cores are used for BF16, and what a tile keeps in
shared memory fits a multiprocessor.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, sys, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rorqual.kernels import triton_latent, triton_rows

LONG = {"tables", "positions", "source", "ends", "tile_ends", "tile_experts", "slots"}
FP32 = {"sums", "stats", "weights"}

def built(kernel, capability, kind, constants, **options):
    def of(name):
        if name in constants:
            return "constexpr"
        if name in LONG:
            return "*i64"
        if name in FP32:
            return "*fp32"
        return "*" + kind if name in ("q", "cache", "out", "x", "weight") else "fp32" if name in ("scale", "eps") else "i32"
    types = {name: of(name) for name in kernel.arg_names}
    if kernel is triton_rows._combine:
        types["rows"] = "*" + kind
    aligned = {} if kernel is triton_rows._norm else {  # as a launch finds them: pointers and widths in whole 16 bytes
        (place,): [["tt.divisibility", 16]] for place, name in enumerate(kernel.arg_names)
        if types[name] not in ("constexpr", "fp32") and name not in ("rows", "table_row", "chosen")
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    options["enable_fp_fusion"] = True
    made = triton.compile(ASTSource(kernel, types, places, aligned), target=GPUTarget("cuda", capability, 32), options=options)
    return {"kernel": kernel.__name__, "kind": kind, "capability": capability, "shared": made.metadata.shared,
            "bytes": len(made.asm["cubin"]), "tensor_cores": "mma.sync" in made.asm["ptx"],
            "ahead": "cp.async.c" in made.asm["ptx"]}

out = []
for capability in (80, 90):
    for kind in ("bf16", "fp32"):
        keys, inputs = (32, 128) if kind == "bf16" else (16, 32)
        split = {"SPLITS": 16, "LEAST": 64, "KEYS": keys, "LATENT": 512}
        tile = {"WIDEN": False, "ROWS": 16, "OUTPUTS": 32, "INPUTS": inputs}
        out += [
            built(triton_latent._attend, capability, kind, {**split, "SLOTS": 16, "HEADS": 16, "ROTARY": 64, "WIDEN": False}, num_warps=8, num_stages=2),
            built(triton_latent._join, capability, kind, split), built(triton_rows._linear, capability, kind, {**tile, "x_input": 1, "weight_input": 1}),
            built(triton_rows._experts, capability, kind, tile), built(triton_rows._norm, capability, kind, {"WIDTH": 8192}),
            built(triton_rows._combine, capability, kind, {"WIDTH": 1024}),
        ]
print("MADE", json.dumps(out))
"""


@pytest.mark.slow
def test_every_kernel_compiles(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    made = json.loads(re.findall(r"^MADE (.*)$", done.stdout, re.M)[0])
    assert len(made) == 24 and all(one["bytes"] > 0 for one in made)
    assert max(one["shared"] for one in made) <= 99 * 1024  # what one block may have at every capability from 8.0 up
    products = [one for one in made if one["kernel"] in ("_attend", "_linear", "_experts")]
    assert all(one["tensor_cores"] == (one["kind"] == "bf16") for one in products)
    assert all(one["ahead"] for one in products)
