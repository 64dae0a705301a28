"""llama.cpp as a judge of a GGUF file: greedy tokens of both engines on one prompt, through the npm package `node-llama-cpp`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import torch

from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.source import Source
from rorqual.errors import CheckpointError
from rorqual.model.transformer import CausalLM

VARIABLE = "RORQUAL_NODE_LLAMA_CPP"
TOKENS = 16
_SCRIPT = """
import {getLlama} from "node-llama-cpp";
const [path, prompt, count] = JSON.parse(process.argv[2]);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 256});
const tokens = [];
for await (const token of context.getSequence().evaluate(prompt, {temperature: 0})) {
    tokens.push(token);
    if (tokens.length >= count) break;
}
console.log("TOKENS " + JSON.stringify(tokens));
process.exit(0);
"""


def package_folder() -> Path | None:
    """The folder whose node_modules has node-llama-cpp: $RORQUAL_NODE_LLAMA_CPP, else npm's global one."""
    places = [Path(os.environ[VARIABLE])] if VARIABLE in os.environ else []
    npm = shutil.which("npm")
    if npm is not None and not places:
        root = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False).stdout.strip()
        places.append(Path(root).parent)
    return next((place for place in places if (place / "node_modules" / "node-llama-cpp").is_dir()), None)


def llama_tokens(path: Path, prompt: list[int], count: int = TOKENS) -> list[int]:
    """What llama.cpp continues a prompt of ids with, greedily; it stops before an end token. CheckpointError where it cannot run."""
    folder, node = package_folder(), shutil.which("node")
    if folder is None or node is None:
        raise CheckpointError(
            f"--check llamacpp needs node and its package node-llama-cpp (npm install node-llama-cpp); name its folder in {VARIABLE}"
        )
    script = folder / "rorqual-check.mjs"
    script.write_text(_SCRIPT)
    try:
        done = subprocess.run(
            [node, str(script), json.dumps([str(path.resolve()), prompt, count])], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        script.unlink(missing_ok=True)
    line = next((line for line in done.stdout.splitlines() if line.startswith("TOKENS ")), None)
    if line is None:
        raise CheckpointError(f"llama.cpp did not run {path}: {(done.stderr or done.stdout).strip()[-500:]}")
    return [int(token) for token in json.loads(line.removeprefix("TOKENS "))]


@torch.no_grad()
def own_tokens(source: Source, prompt: list[int], count: int = TOKENS) -> list[int]:
    """The same by our model in FP32, without the cache: the plainest way there is; it stops before an end token."""
    model = CausalLM(source.config.with_(quantization_config=None, num_nextn_predict_layers=0))
    for name, target in logical_tensors(model).items():
        target.copy_(source.rows(name, 0, source.shape(name)[0]))
    ids = list(prompt)
    while len(ids) < len(prompt) + count:
        best = int(model.logits(model(torch.tensor([ids])).hidden[0, -1]).argmax())
        if best == source.config.eos_token_id:
            break
        ids.append(best)
    return ids[len(prompt) :]


def check(path: Path, source: Source, tokenizer: Path | None) -> str:
    """One line that says the tokens are the same; CheckpointError with both lists where they are not."""
    prompt = [number % source.config.vocab_size for number in range(3, 11)]
    theirs, ours = llama_tokens(path, prompt), own_tokens(source, prompt)
    if theirs != ours:
        raise CheckpointError(
            f"{path}: llama.cpp continues {prompt} with {theirs}, we with {ours}; below F32 rounding alone can cause this"
        )
    return f"check: llama.cpp gives the same {len(ours)} greedy tokens" + ("" if tokenizer else " (the file has no tokenizer)")
