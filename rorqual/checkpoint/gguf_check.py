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
TIE = 2e-3
"""Logits closer than this may change places by rounding in FP32."""
_SCRIPT = """
import {getLlama} from "node-llama-cpp";
const [path, prompt, count] = JSON.parse(process.argv[2]);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 256, threads: 1});
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


def own_model(source: Source) -> CausalLM:
    """The source in FP32, without its MTP modules."""
    model = CausalLM(source.config.with_(quantization_config=None, num_nextn_predict_layers=0))
    with torch.no_grad():
        for name, target in logical_tensors(model).items():
            target.copy_(source.rows(name, 0, source.shape(name)[0]))
    return model


@torch.no_grad()
def compare(model: CausalLM, prompt: list[int], theirs: list[int], count: int = TOKENS) -> tuple[int, float]:
    """(tokens of theirs that are ours too, gap of our logits at the first that is not: ours minus theirs, infinite where none differs).

    Without a cache: the plainest way there is. An answer that ends early must end where ours does.
    """
    ids, end = list(prompt), model.config.eos_token_id
    for place in range(count):
        logits = model.logits(model(torch.tensor([ids])).hidden[0, -1])
        best, other = int(logits.argmax()), theirs[place] if place < len(theirs) else end
        if best != other:
            return place, float(logits[best] - logits[other])
        if best == end:
            return place, float("inf")
        ids.append(best)
    return count, float("inf")


def check(path: Path, source: Source, tokenizer: Path | None) -> str:
    """One line that says how far the tokens agree; CheckpointError where they part and it is no tie."""
    prompt = [number % source.config.vocab_size for number in range(3, 11)]
    theirs = llama_tokens(path, prompt)
    same, gap = compare(own_model(source), prompt, theirs)
    if gap <= TIE:
        return f"check: llama.cpp gives the same greedy tokens up to the {same + 1}th, where two logits are {gap:.1g} apart: a tie that rounding decides"
    if gap < float("inf"):
        raise CheckpointError(
            f"{path}: llama.cpp continues {prompt} with {theirs}; our own token {same + 1} is another, {gap:.3g} ahead of theirs; weights in F16 or Q8_0 can "
            "cause this, in F32 it is a fault"
        )
    return f"check: llama.cpp gives the same {same} greedy tokens" + ("" if tokenizer else " (the file has no tokenizer)")
