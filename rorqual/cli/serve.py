"""Serve a model over HTTP as OpenAI's API does, with a chat page at /.

rorqual serve runs/laptop                                   # http://127.0.0.1:8000, this machine alone
rorqual serve V2-Lite --port 8001 --speculative off
rorqual serve V3 --host 0.0.0.0 --api-key "$KEY"            # others may ask, with the key
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

from rorqual.cli.engine import add_options, open_engine
from rorqual.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from rorqual.cli.engine import Opened

KEY_VARIABLE = "RORQUAL_API_KEY"


def main(argv: list[str]) -> int:
    """Runs the verb until SIGINT or SIGTERM; returns the exit code. Raises RorqualError before it listens, for what cannot be served."""
    parser = argparse.ArgumentParser(
        prog="rorqual serve",
        description="Serve a model of the DeepSeek-V3 family: /v1/chat/completions, /v1/completions, /v1/models, /metrics, a chat page at /.",
    )
    add_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than this machine's need a key (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help=f"key that clients have to show, several times for several keys (default: {KEY_VARIABLE} of the environment)",
    )  # fmt: skip
    parser.add_argument(
        "--rl", action="store_true", help="let a trainer that has the key load weights and ask for token ids with their experts (/rl/...)"
    )
    parser.add_argument("--served-model-name", metavar="NAME", help="the model's name for clients (default: the folder's)")
    parser.add_argument("--queue-limit", type=int, default=512, metavar="N", help="requests at a time; more get 429 (default: 512)")
    parser.add_argument("--rate-limit", type=int, metavar="N", help="requests a minute for each key or address (default: none)")
    parser.add_argument("--max-body-mb", type=float, default=8.0, metavar="MB", help="size of a request (default: 8)")
    parser.add_argument("--request-timeout", type=float, metavar="SECONDS", help="an answer is cut off after this time (default: never)")
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="on shutdown, time for answers to finish before they are failed (default: 30)",
    )
    args = parser.parse_args(argv)
    for name, least in (("queue_limit", 1), ("rate_limit", 1), ("max_body_mb", 0.001), ("request_timeout", 0.001), ("grace", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} ({value}) must be at least {least}")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port ({args.port}) must be from 0 to 65535")
    return serve(args)


def serve(args: argparse.Namespace) -> int:
    """Loads, listens, serves; the address is taken before the model is read, so that a wrong one costs no wait."""
    began = time.perf_counter()
    _need_extra()
    from rorqual.server.limits import Limits, check_binding, is_loopback

    keys = tuple(args.api_key) or tuple(filter(None, [os.environ.get(KEY_VARIABLE)]))
    check_binding(args.host, keys)
    if args.rl and not keys:
        raise ConfigError("--rl needs --api-key: its routes read folders of this machine and change the weights that everybody is served")
    with listening_socket(args.host, args.port) as listener:
        opened = open_engine(args, args.served_model_name)
        local = is_loopback(args.host)
        limits = Limits(
            api_keys=keys, body_bytes=int(args.max_body_mb * 2**20), requests_per_minute=args.rate_limit, queue_limit=args.queue_limit,
            hosts=("127.0.0.1", "localhost", "::1") if local else None, request_seconds=args.request_timeout,
        )  # fmt: skip
        from rorqual.server.run import run

        port = listener.getsockname()[1]
        run(
            opened.engine, opened.served, limits, listener, args.grace, lambda: _say_ready(opened, args.host, port, bool(keys), began), rl=args.rl
        )  # fmt: skip
    return 0


def _need_extra() -> None:
    from importlib.util import find_spec

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        if find_spec(package) is None:
            raise MissingExtraError("the server", package.replace("_", "-"), "serve")


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; ConfigError for an address that is in use or not this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"host ({host}) is no address of this machine ({error.strerror}); use 127.0.0.1") from None
    made = socket.socket(found[0], found[1])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(found[4])
        made.listen(2048)
    except OSError as error:
        made.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); choose another with --port, or 0 for a free one"
        ) from None
    return made


def _say_ready(opened: Opened, host: str, port: int, keyed: bool, began: float) -> None:
    engine, served = opened.engine, opened.served
    shown = f"[{host}]" if ":" in host else host
    blocks = engine.pool.num_blocks * engine.pool.block_size
    print(f"{served.name}: ready in {time.perf_counter() - began:.1f} s", file=sys.stderr)
    print(f"  chat page      http://{shown}:{port}/", file=sys.stderr)
    print(f"  OpenAI's API   http://{shown}:{port}/v1{' (with a key)' if keyed else ''}", file=sys.stderr)
    print(
        f"  chat style {served.style}, context {served.max_model_len}, cache {blocks:,} tokens, "
        f"decode step {engine.runner.path}, drafts {engine.num_drafts or 'off'}",
        file=sys.stderr,
    )
    print("  Ctrl-C finishes what runs, then stops", file=sys.stderr, flush=True)
