"""Many streaming clients against one `rorqual serve`: every token compared with the offline engine's, memory watched.

    python benchmarks/load.py --config nano --clients 500 --minutes 20
    python benchmarks/load.py --config nano --clients 500 --queue-limit 100 --minutes 1

Each client streams one completion after the other, each over a connection of its own, half of them greedy, half sampled under a seed.
`load`: value is tokens per second; answers, errors, refused (429), wrong (an answer that is not token for token the offline engine's),
resident megabytes of the server at a tenth of the time and at the end. The exit code is 1 where anything but a 429 failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import common

from rorqual import LLM, SamplingParams
from rorqual.checkpoint import writer
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe

PROMPTS = 48


def requests(count: int) -> list[dict[str, Any]]:
    """Different requests: lengths from 4 to 35 tokens, every second one sampled."""
    return [
        {"prompt": f"def f{number}(x):\n    return x +", "max_tokens": 4 + number % 32, "temperature": 0.8 * (number % 2), "seed": number, "ignore_eos": True}
        for number in range(count)
    ]  # fmt: skip


def expected(folder: Path, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """What the engine answers when nobody else asks."""
    llm = LLM(folder)
    out = []
    for body in bodies:
        params = SamplingParams(max_tokens=body["max_tokens"], temperature=body["temperature"], seed=body["seed"], ignore_eos=True)
        out.append(llm.generate(body["prompt"], params)[0].outputs[0].token_ids)
    return out


async def ask(port: int, body: dict[str, Any]) -> tuple[int, list[int]]:
    """(status, token ids) of one streamed completion; the ids are empty unless the stream came to its end."""
    reader, out = await asyncio.open_connection("127.0.0.1", port)
    try:
        data = json.dumps({**body, "stream": True, "return_token_ids": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        out.write(head.encode() + data)
        await out.drain()
        status = int((await reader.readline()).split()[1])
        answer = await reader.read()
    finally:
        out.close()
    if status != 200 or b"data: [DONE]" not in answer:
        return status, []
    ids: list[int] = []
    for event in re.findall(rb"data: (\{.*\})", answer):
        ids += json.loads(event)["choices"][0]["token_ids"]
    return status, ids


async def client(port: int, number: int, bodies: list[dict[str, Any]], right: list[list[int]], until: float, seen: Counter[str]) -> None:
    """One client after the other answer until the time is up. A refused one waits half a second."""
    turn = number
    while time.monotonic() < until:
        which = turn % len(bodies)
        try:
            status, ids = await asyncio.wait_for(ask(port, bodies[which]), 300)
        except (TimeoutError, OSError, ValueError, IndexError):
            seen["errors"] += 1
            continue
        if status == 429:
            seen["refused"] += 1
            await asyncio.sleep(0.5)
            continue
        if status != 200 or not ids:
            seen["errors"] += 1
        elif ids != right[which]:
            seen["wrong"] += 1
        else:
            seen["answers"] += 1
            seen["tokens"] += len(ids)
        turn += 1


def resident(pid: int) -> float:
    """Megabytes of a process that lie in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def load(
    server: subprocess.Popen[str], port: int, args: argparse.Namespace, bodies: list[dict[str, Any]], right: list[list[int]]
) -> Counter[str]:
    """All clients at once; emits the line."""
    seen: Counter[str] = Counter()
    began = time.monotonic()
    seconds = 60 * args.minutes
    work = asyncio.gather(*(client(port, number, bodies, right, began + seconds, seen) for number in range(args.clients)))
    memory: list[float] = []
    while not work.done():
        await asyncio.sleep(min(1.0, seconds / 20))
        memory.append(resident(server.pid))
    await work
    early = memory[len(memory) // 10]
    common.emit(
        "load", seen["tokens"] / (time.monotonic() - began), None, None, clients=args.clients, queue_limit=args.queue_limit, seconds=time.monotonic() - began,
        answers=seen["answers"], errors=seen["errors"], refused=seen["refused"], wrong=seen["wrong"], resident_mb_early=early, resident_mb_end=memory[-1],
        resident_mb_peak=max(memory),
    )  # fmt: skip
    return seen


def main() -> int:
    """Prints the line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="nano")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--queue-limit", type=int, default=512)
    parser.add_argument("--minutes", type=float, default=1.0)
    args = parser.parse_args()
    config = common.load_config(args.config)
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        bpe.train([Path(common.__file__).read_text(encoding="utf-8")], 512, place / "tokenizer")
        model = CausalLM(config)
        model.init_weights(0)
        folder = writer.export(model, place / "tokenizer", place / "model")
        bodies = requests(PROMPTS)
        right = expected(folder, bodies)
        command = [sys.executable, "-m", "rorqual", "serve", str(folder), "--port", "0", "--queue-limit", str(args.queue_limit)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                assert server.stderr is not None
                said = ""
                while "Ctrl-C" not in said:
                    line = server.stderr.readline()
                    if not line:
                        print(said, file=sys.stderr)
                        return 1
                    said += line
                found = re.search(r"http://[^ ]*:(\d+)/", said)
                assert found is not None
                seen = asyncio.run(load(server, int(found[1]), args, bodies, right))
            finally:
                server.terminate()
                server.communicate()
    return int(bool(seen["errors"] or seen["wrong"] or not seen["answers"]))


if __name__ == "__main__":
    sys.exit(main())
