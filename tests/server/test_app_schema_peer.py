"""schemathesis over the server's own OpenAPI document, bounded: whatever fits the schemas, or nearly, no 5xx and no hang."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="it makes the requests")
pytest.importorskip("uvicorn", reason="the server needs the extra serve")

from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from tests.server.real import Running, model_folder, running  # noqa: E402

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]
PATHS = [("POST", "/v1/chat/completions"), ("POST", "/v1/completions"), ("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/v1/models"),
         ("GET", "/health"), ("GET", "/ready"), ("GET", "/metrics")]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = model_folder(tmp_path_factory.mktemp("schema"), max_position_embeddings=128)
    with running(folder) as made:
        yield made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("method", "path"), PATHS)
def test_no_request_breaks_the_server(server, method, path):
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    answered: dict[int, int] = {}

    @settings(max_examples=80 if method == "POST" else 5, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=schema[path][method].as_strategy())
    def run(case):  # type: ignore[no-untyped-def]
        began = time.monotonic()
        response = case.call(timeout=30)
        assert response.status_code < 500 and time.monotonic() - began < 20, response.text
        answered[response.status_code] = answered.get(response.status_code, 0) + 1

    run()
    assert sum(answered.values()) >= (40 if method == "POST" else 1) and set(answered) <= {200, 400, 404}, answered
    assert server.ask("GET", "/health")[0] == 200 and server.figure("num_requests_running") == 0
