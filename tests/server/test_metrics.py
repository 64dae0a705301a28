"""vLLM's names, the engine's own counters, and times of a request."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client", reason="the server needs the extra serve")

from rorqual.inference.engine import EngineStats  # noqa: E402
from rorqual.server.metrics import Metrics  # noqa: E402


def _value(text: str, name: str) -> float:
    return float(next(line for line in text.splitlines() if line.startswith(f"vllm:{name}")).rsplit(" ", 1)[1])


def test_the_engines_counters_are_read_when_asked():
    stats = EngineStats(running=3, waiting=2, cache_usage=0.25, prefix_queries=100, prefix_hits=40, preemptions=1, drafts=9, accepted=6)
    text = Metrics(lambda: stats, "m").text().decode()
    wanted = {"num_requests_running": 3, "num_requests_waiting": 2, "kv_cache_usage_perc": 0.25, "prefix_cache_queries_total": 100,
              "prefix_cache_hits_total": 40, "num_preemptions_total": 1, "spec_decode_num_draft_tokens_total": 9,
              "spec_decode_num_accepted_tokens_total": 6}  # fmt: skip
    assert {name: _value(text, name) for name in wanted} == wanted


def test_a_request_is_timed_and_counted_once():
    metrics = Metrics(EngineStats, "m")
    watch = metrics.begin(7)
    for count in (1, 2, 0, 1):
        watch.tokens(count)
    watch.choice("stop")
    watch.end(True)
    metrics.begin(5).end(False)
    metrics.refused(429)
    text = metrics.text().decode()
    assert (_value(text, "prompt_tokens_total"), _value(text, "generation_tokens_total")) == (12, 4)
    assert (_value(text, "time_to_first_token_seconds_count"), _value(text, "inter_token_latency_seconds_count")) == (1, 3)
    assert (
        _value(text, 'request_success_total{finished_reason="abort"') == _value(text, 'request_success_total{finished_reason="stop"') == 1
    )
    assert _value(text, "request_generation_tokens_sum") == 4 and _value(text, 'request_errors_total{model_name="m",status="429"}') == 1
