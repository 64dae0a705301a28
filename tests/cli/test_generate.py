"""`rorqual generate`: text as it comes, whole characters, the same with and without drafts, clear refusals before any work."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
import torch

from rorqual.checkpoint import hf
from rorqual.cli import generate
from rorqual.cli.main import main
from rorqual.errors import ConfigError
from rorqual.inference.engine import StepOutput
from rorqual.model.transformer import CausalLM
from rorqual.tokenizer import bpe
from tests.tiny import t0

TEXTS = ["the whale dives, the whale sings; \U0001f40b breathes \u6df1\u5ea6\n"] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and a vocabulary that is almost all single bytes, so that its text is full of parts of characters."""
    root = tmp_path_factory.mktemp("generate")
    tokenizer = bpe.train(TEXTS, 300, root / "tokenizer")
    config = t0(vocab_size=320, initializer_range=0.1, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    model = CausalLM(config)
    model.init_weights(1)
    return hf.export(model, root / "tokenizer", root / "model")


def _run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[str, str]:
    assert main(["generate", *map(str, argv)]) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_the_text_begins_with_the_prompt_and_is_the_same_for_every_way_of_drafting(folder, capsys):
    asked = (folder, "the whale", "--max-new-tokens", 24, "--temperature", 0.9, "--seed", 5)
    texts = [_run(capsys, *asked, "--speculative", how)[0] for how in ("auto", "off", "1", "2")]
    assert texts[0].startswith("the whale") and len(texts[0]) > 20
    assert texts == texts[:1] * 4
    assert _run(capsys, *asked[:-1], 6)[0] != texts[0]


def test_statistics_go_to_standard_error(folder, capsys):
    out, err = _run(capsys, folder, "the whale", "--max-new-tokens", 20, "--temperature", 0, "--stats")
    pattern = r"\d+ prompt tokens in [\d.]+ s; \d+ new tokens \((length|stop)\), [\d.]+ tokens/s; \d+ of \d+ drafts accepted \(\d+%\), [\d.]+ tokens per step\n"
    assert re.fullmatch(pattern, err) and "tokens/s" not in out
    plain = _run(capsys, folder, "the whale", "--max-new-tokens", 20, "--temperature", 0, "--stats", "--speculative", "off")
    assert plain[0] == out and "drafts" not in plain[1]


def _pieces(folder: Path, tokens: list[int], reason: str = "length") -> list[str]:
    """What is shown of these tokens, which come one by one."""
    steps = [StepOutput("1", 0, [token], None, None if place < len(tokens) - 1 else reason) for place, token in enumerate(tokens)]
    return list(generate._shown("", steps, bpe.load(folder)))


def test_characters_split_over_tokens_come_whole(folder):
    tokenizer = bpe.load(folder)
    byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    tokens = [byte[bytes([value])] for value in "a\U0001f40b\u6df1".encode()]
    pieces = _pieces(folder, tokens)
    assert "".join(pieces) == "a\U0001f40b\u6df1" and not any("\ufffd" in piece for piece in pieces)
    assert "".join(_pieces(folder, tokens[:-1])) == "a\U0001f40b"


def test_the_stop_token_is_not_shown(folder):
    tokenizer = bpe.load(folder)
    text = tokenizer.encode("sings")
    assert "".join(_pieces(folder, [*text, tokenizer.eos_id], "stop")) == "sings"


def test_a_terminal_gets_control_codes_shown_and_a_file_gets_them_as_they_are(folder, monkeypatch):
    tokens = bpe.load(folder).encode("\x1b[2Jx")
    assert "".join(_pieces(folder, tokens)) == "\x1b[2Jx"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "".join(_pieces(folder, tokens)) == "\u241b[2Jx"


def test_the_prompt_from_standard_input(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the whale"))
    out, _ = _run(capsys, folder, "-", "--max-new-tokens", 3, "--temperature", 0)
    assert out == _run(capsys, folder, "the whale", "--max-new-tokens", 3, "--temperature", 0)[0]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert main(["generate", str(folder), "-"]) == 1 and "not valid Unicode" in capsys.readouterr().err


def test_the_padding_of_the_vocabulary_is_never_sampled(folder, tmp_path, capsys):
    """F22: ids 300..319 have no token; they are made the likeliest."""
    model, _ = hf.load(folder)
    with torch.no_grad():
        model.lm_head.weight[bpe.load(folder).vocab_size :] = model.lm_head.weight[:20] * 30
    hf.export(model, folder, tmp_path / "padded")
    assert len(_run(capsys, tmp_path / "padded", "the", "--max-new-tokens", 30, "--temperature", 2)[0]) > 10


def test_without_a_number_of_tokens_it_fills_what_fits(folder, capsys):
    prompt, tokenizer = "the whale ", bpe.load(folder)
    while len(tokenizer.encode(prompt)) < 230:
        prompt += "dives "
    length = len(tokenizer.encode(prompt))
    _, err = _run(capsys, folder, prompt, "--temperature", 0, "--stats")
    new, reason = re.search(r"(\d+) new tokens \((\w+)\)", err).groups()
    assert length + int(new) == 256 or reason == "stop"


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["--max-new-tokens", "0"], 2, "at least 1"),
        (["--speculative", "often"], 2, "must be auto, off or a number"),
        (["--temperature", "-1"], 1, "temperature (-1.0)"),
        (["--top-p", "0"], 1, "top_p (0.0)"),
        (["--top-k", "-3"], 1, "top_k (-3)"),
        (["--max-new-tokens", "999"], 1, "use max_tokens of at most"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, capsys, argv, code, message):
    try:
        assert main(["generate", str(folder), "the whale", *argv]) == code
    except SystemExit as stop:
        assert stop.code == code
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_sampling_settings_are_refused_before_the_folder_is_read(tmp_path):
    with pytest.raises(ConfigError, match="temperature"):
        generate.main([str(tmp_path / "absent"), "x", "--temperature", "nan"])
