"""`rorqual chat`: lines in, answers out, the conversation as the model sees it."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import pytest

from rorqual.cli import chat
from rorqual.cli.chat import Conversation
from rorqual.cli.main import main
from rorqual.errors import ConfigError, DataError
from rorqual.inference.engine import Engine
from rorqual.inference.params import SamplingParams
from rorqual.model.transformer import CausalLM
from rorqual.server.served import Served
from tests.server.real import model_folder
from tests.tiny import t0
from tests.tokenizer.samples import tokenizer

GREEDY = SamplingParams(max_tokens=6, temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("chat"))


def _chat(monkeypatch, capsys, folder: Path, text: str, *options: str) -> tuple[int, str, str]:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = main(["chat", str(folder), "--max-new-tokens", "8", *options])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_lines_are_messages_and_the_same_lines_give_the_same_answers(folder, monkeypatch, capsys):
    code, out, err = _chat(monkeypatch, capsys, folder, "value\n\n/what\n/new\nvalue\n/quit\nvalue\n", "--temperature", "0", "--stats")
    assert code == 0 and err.count("prompt tokens, 8 new ones") == 2 and "/what is no command; /help lists them" in err
    assert len(out) % 2 == 0 and out[: len(out) // 2] == out[len(out) // 2 :]
    assert _chat(monkeypatch, capsys, folder, "value\n", "--temperature", "0", "--speculative", "off")[1] * 2 == out
    assert _chat(monkeypatch, capsys, folder, "/help\n")[1].startswith("/new ")


def test_a_retry_draws_anew(folder, monkeypatch, capsys):
    _, out, err = _chat(monkeypatch, capsys, folder, "/retry\nvalue\n/retry\n", "--temperature", "1", "--stats")
    assert "there is no answer yet" in err and err.count("new ones") == 2
    first, second = (line.partition(" prompt tokens")[0] for line in err.splitlines() if "new ones" in line)
    assert first == second and len(out) > 4


def test_the_answer_stands_below_its_reasoning(monkeypatch, capsys):
    pieces = [("reasoning", "7 + 5 "), ("reasoning", "= 12"), ("content", "12")]
    talk = SimpleNamespace(answer=lambda: iter(pieces), messages=[], summary="")
    chat._answer(talk, stats=False)
    assert capsys.readouterr().out == "7 + 5 = 12\n12\n"


def test_what_does_not_fit_is_told_and_taken_back(folder, monkeypatch, capsys):
    code, _, err = _chat(monkeypatch, capsys, folder, "value " * 1200 + "\n")
    assert code == 1 and "exceed max_position_embeddings (1024)" in err and "Traceback" not in err


def test_options_are_checked_before_the_folder_is_read(capsys):
    assert main(["chat", "nowhere", "--temperature", "-1"]) == 1 and "temperature (-1.0)" in capsys.readouterr().err
    assert main(["chat", "nowhere"]) == 1 and "nowhere is not a folder" in capsys.readouterr().err
    for wrong in (["--speculative", "often"], ["--max-num-seqs", "0"]):
        with pytest.raises(SystemExit):
            main(["chat", "nowhere", *wrong])


def _conversation(**changes) -> Conversation:  # type: ignore[no-untyped-def]
    words = tokenizer()
    model = CausalLM(t0(vocab_size=448, initializer_range=0.1, bos_token_id=words.bos_id, eos_token_id=words.eos_id))
    model.init_weights(1)
    served = Served("tiny", words, 256, 448, frozenset([words.eos_id or 0]), **changes)
    return Conversation(Engine(model, words, max_num_seqs=1), served, GREEDY)


def test_an_answer_joins_the_conversation_even_when_it_is_cut():
    talk = _conversation()
    talk.messages.append({"role": "user", "content": "value"})
    whole = "".join(text for _, text in talk.answer())
    assert talk.messages[1] == {"role": "assistant", "content": whole} and "6 new ones" in talk.summary
    talk.messages.append({"role": "user", "content": "more"})
    answer = talk.answer()
    next(answer)
    answer.close()
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2 and not talk.engine.has_work
    assert talk.take_back() and not talk.take_back()
    talk.forget()
    with pytest.raises(DataError, match="messages is empty"):
        list(talk.answer())


def test_a_style_that_the_tokenizer_has_no_tokens_for():
    talk = _conversation(style="template")
    talk.messages.append({"role": "user", "content": "value"})
    with pytest.raises((ConfigError, DataError)):
        list(talk.answer())
