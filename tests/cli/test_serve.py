"""`rorqual serve` before it serves: addresses, keys, settings; tests/server/ has the rest."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("uvicorn", reason="the server needs the extra serve")
pytest.importorskip("fastapi", reason="the server needs the extra serve")

from rorqual.cli import serve  # noqa: E402
from rorqual.cli.main import main  # noqa: E402
from rorqual.errors import ConfigError  # noqa: E402


def test_a_public_address_needs_a_key(capsys, monkeypatch):
    monkeypatch.delenv(serve.KEY_VARIABLE, raising=False)
    assert main(["serve", "nowhere", "--host", "0.0.0.0"]) == 1
    assert "can be reached from other machines; give --api-key" in capsys.readouterr().err
    monkeypatch.setenv(serve.KEY_VARIABLE, "sesame")
    assert main(["serve", "nowhere", "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_an_address_in_use_costs_no_wait(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "nowhere", "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another with --port" in capsys.readouterr().err


def test_a_host_that_is_none():
    with pytest.raises(ConfigError, match="is no address of this machine"):
        serve.listening_socket("no such host", 0)
    with serve.listening_socket("127.0.0.1", 0) as made:
        assert made.getsockname()[1] > 0


@pytest.mark.parametrize(
    "wrong",
    [["--queue-limit", "0"], ["--rate-limit", "0"], ["--max-body-mb", "0"], ["--request-timeout", "0"], ["--grace", "-1"], ["--port", "70000"], ["--port", "x"]],
)  # fmt: skip
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(SystemExit) as stop:
        main(["serve", "nowhere", *wrong])
    assert stop.value.code == 2


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "nowhere"]) == 1
    assert "pip install 'rorqual[serve]'" in capsys.readouterr().err


def test_keys_are_several_and_need_to_be_plain(capsys):
    assert main(["serve", "nowhere", "--api-key", "a b ", "--port", "0"]) == 1
    assert "API key must be ASCII" in capsys.readouterr().err
