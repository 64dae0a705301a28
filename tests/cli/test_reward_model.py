"""The verb `reward-model`: from pairs to a folder that distill and grpo take, with and without a judge."""

from __future__ import annotations

import json

import pytest

from rorqual.cli.main import main
from rorqual.posttrain.reward_model import open_reward
from tests.posttrain import teachers
from tests.posttrain.tiny_chat import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("base"), num_hidden_layers=2, initializer_range=0.1)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}?", "chosen": "the whale sings", "rejected": "one and two"} for n in range(16)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


FAST = ["--batch", "8", "--lr", "5e-3", "--epochs", "2", "--validation", "0.2"]


def test_train_evaluate_and_use(tmp_path, folder, data, capsys):
    out = tmp_path / "reward"
    assert main(["reward-model", "--model", str(folder), "--data", str(data), "--out", str(out), *FAST]) == 0
    assert "held-out accuracy 1.000" in capsys.readouterr().out
    assert main(["reward-model", "--model", str(out), "--data", str(data), "--evaluate"]) == 0
    assert "16 of 16 pairs in order, 1.000" in capsys.readouterr().out
    assert main(["reward-model", "--out", str(out), "--resume"]) == 0  # nothing is left to do
    component, facts = open_reward(str(out))
    assert callable(component) and facts["kind"] == "reward model" and facts["reasoning"] is False
    assert main(["reward-model", "--model", str(folder), "--data", str(data), "--out", str(out), *FAST]) == 1
    assert "already holds a run" in capsys.readouterr().err


def test_a_judge_brings_the_reasoning(tmp_path, folder, data, capsys):
    def reply(body):  # type: ignore[no-untyped-def]
        good = "> the whale sings" in body["messages"][-1]["content"]
        return 200, teachers.message(f"{'sings' if good else 'two'}\nScore: {9 if good else 3}")

    with teachers.server(reply) as url:
        argv = [
            "reward-model",
            "--model",
            str(folder),
            "--data",
            str(data),
            "--judge",
            url,
            "--votes",
            "1",
            "--out",
            str(tmp_path / "reward"),
            *FAST,
        ]
        assert main([*argv, "--max-reasoning-tokens", "4"]) == 0
    said = capsys.readouterr()
    assert "16 kept" in said.err and "score behind the reasoning" in said.out
    assert json.loads((tmp_path / "reward.judged.jsonl").read_text(encoding="utf-8").splitlines()[0])["chosen_reasoning"] == "sings"


def test_mistakes_are_one_message(tmp_path, folder, data, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["reward-model", "--out", str(tmp_path / "x")])
    assert stop.value.code == 2 and "give --model DIR and --data FILE" in capsys.readouterr().err
    assert main(["reward-model", "--model", str(tmp_path), "--data", str(data), "--out", str(tmp_path / "x")]) == 1
    assert main(["reward-model", "--model", str(folder), "--data", "nothing", "--out", str(tmp_path / "x")]) == 1
    assert main(["reward-model", "--model", str(folder), "--data", str(data), "--evaluate"]) == 1
    assert main(["reward-model", "--out", str(tmp_path / "x"), "--resume"]) == 1
    said = capsys.readouterr().err
    for message in ("has no config.json", "cannot read nothing", "holds no finished reward model", "holds no run to resume"):
        assert message in said
    assert "Traceback" not in said


def test_a_judge_that_cannot_be_read_leaves_no_file_behind(tmp_path, folder, data, capsys):
    with teachers.server(lambda body: (200, teachers.message("I like both"))) as url:
        argv = ["reward-model", "--model", str(folder), "--data", str(data), "--judge", url, "--votes", "1", "--out", str(tmp_path / "r")]
        assert main(argv) == 1
    assert "left no pair of" in (said := capsys.readouterr().err) and "16 x too few votes could be read" in said
    assert not list(tmp_path.glob("r.judged*"))
