"""lm-evaluation-harness over our engine, item for item against the native scorer; its five methods by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is the extra eval")

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

from rorqual.errors import ConfigError, DataError  # noqa: E402
from rorqual.eval import harness  # noqa: E402
from rorqual.eval.models import Asking, EngineModel  # noqa: E402
from rorqual.eval.results import Progress  # noqa: E402
from rorqual.eval.run import Options, evaluate  # noqa: E402
from rorqual.eval.task import GenerationTask, Task, Tools  # noqa: E402
from rorqual.eval.tasks import catalog  # noqa: E402
from tests.eval import small  # noqa: E402

pytestmark = pytest.mark.peer


class Request:
    """What lm-eval hands over."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_the_five_methods():
    made = small.engine_model()
    lm = harness.HarnessModel(made, max_gen_toks=7)
    assert lm.eot_token_id == made.engine.model.config.eos_token_id and lm.max_length == 512 and lm.tok_encode("the whale")
    pairs = [("the blue", " whale sings"), ("", "whale"), ("Answer: ", "blue")]
    found = lm.loglikelihood([Request(*pair) for pair in pairs])
    assert found == [(one.logprob, one.greedy) for one in made.likelihood(pairs)]
    text = "the whale sings, the whale dives; " * 60
    ids = made.tokenizer.encode_text(text)
    assert len(ids) > 512
    windows = map(make_disjoint_window, get_rolling_token_windows(ids, lm.prefix_token_id, lm.max_length, 1))
    by_hand = sum(sum(small.reference([*context, *new], len(context))) for context, new in windows)
    assert lm.loglikelihood_rolling([Request(text)])[0] == pytest.approx(by_hand, abs=1e-2)
    context, whole = made.encoder.context("the blue"), made.encoder.pairs([("the blue", " whale")])[0].whole
    ((value, _),) = lm._loglikelihood_tokens([(("", ""), context, whole[len(context) :])])
    assert value == pytest.approx(made.likelihood([("the blue", " whale")])[0].logprob, abs=1e-5)
    (text,) = lm.generate_until([Request("the blue", {"until": []})])
    stop = text[1:3]
    first, second, third = lm.generate_until([
        Request("the blue", {"until": stop, "do_sample": False}), Request("the blue", {"until": [""], "max_gen_toks": 3}), Request("the blue", {}),
    ])  # fmt: skip
    assert first == text[: text.find(stop)] and third == text and text.startswith(second) and len(second) < len(text)
    with pytest.raises(ConfigError, match="top_k are unknown"):
        lm.generate_until([Request("the blue", {"top_k": 3})])


# ---------------------------------------------------------------------- item for item


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe `laptop` over GSM8K's own training text, shortened to about a hundred steps."""
    from rorqual.cli.main import main
    from rorqual.data.build import build
    from rorqual.data.config import DataConfig
    from rorqual.recipes.laptop import laptop

    root = tmp_path_factory.mktemp("trained")
    lines = (small.DATA / "gsm8k" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:4000]]
    (root / "corpus").mkdir()
    for number in range(40):
        part = rows[number * 100 : number * 100 + 100]
        (root / "corpus" / f"{number}.txt").write_text("\n\n".join(f"Question: {row['question']}\nAnswer: {row['answer']}" for row in part))
    recipe = laptop()
    made = replace(recipe.build, inputs=(f"prose={root / 'corpus'}",), vocab_size=2048, validation_rate=0.1, near_duplicate=1.0)
    train = replace(recipe.train, validation_source="prose", validation_tokens=2048, sample_every_steps=10_000, validate_every_steps=10_000)
    run = replace(recipe, model=recipe.model.with_(vocab_size=2048), build=made, data=DataConfig(sources={"prose": 1.0}), train=train)
    (root / "config.json").write_text(run.to_json())
    with ThreadPoolExecutor(1) as executor:
        build(made, root / "data", executor=executor)
    command = ["pretrain", str(root / "config.json"), "--data", str(root / "data"), "--out", str(root / "run")]
    assert main([*command, "--train.total-tokens", "120000"]) == 0
    return root


@pytest.fixture(params=["random", "trained"])
def model(request: pytest.FixtureRequest) -> Iterator[EngineModel]:
    """A tiny model with random weights, and one that was trained."""
    if request.param == "random":
        yield small.engine_model()
        return
    from rorqual.cli.model_folder import load_folder
    from rorqual.inference.engine import Engine

    root = request.getfixturevalue("trained")
    loaded = load_folder(root / "run", root / "data" / "tokenizer")
    yield EngineModel(Engine(loaded.model, loaded.tokenizer), loaded.tokenizer, "trained")


CASES = [("arc_easy", 2), ("lambada", 0), ("gsm8k", 1)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@small.needs_data
@pytest.mark.parametrize(("name", "shots"), CASES)
def test_item_for_item(model: EngineModel, tmp_path: Path, name: str, shots: int):
    """200 items: the same prompts, log-probabilities, answers and scores."""
    task: Task = catalog.task(name)
    if isinstance(task, GenerationTask):
        task = replace(task, max_tokens=24)
    items = task.items(small.DATA, shots, 200)
    with Progress(tmp_path / "out.json", {}) as progress:
        ours = evaluate(task, items, model, progress, Options(asking=Asking()), Tools(), lambda done, total: None)
    theirs = harness.evaluate(model, [task], small.DATA, shots=shots, limit=200)["tasks"][name]
    assert len(ours["items"]) == len(theirs["items"]) == 200
    for item, mine, other in zip(items, ours["items"], theirs["items"], strict=True):
        assert mine["id"] == other["id"] and (item.prompt or item.pairs[0][0]) == other["prompt"]
        assert mine.get("outputs") == other.get("outputs")
        assert mine.get("logprobs") == (None if "logprobs" not in other else pytest.approx(other["logprobs"], abs=2e-4))
        assert {key: value for key, value in mine["scores"].items() if key in other["scores"]} == other["scores"] or name == "lambada"
        assert mine["scores"][next(iter(mine["scores"]))] == other["scores"][next(iter(mine["scores"]))]
    for metric, one in theirs["metrics"].items():
        assert one == {key: pytest.approx(ours["metrics"][metric][key], rel=1e-3) for key in ("value", "stderr", "n")}
    if isinstance(task, GenerationTask):
        assert len({one["outputs"][0] for one in ours["items"]}) > 1


@pytest.mark.parametrize("error", [ConnectionError("Couldn't reach 'allenai/ai2_arc'"), KeyError("arc_esay")])
def test_tasks_that_lm_eval_cannot_get_are_told(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def gone(**_: Any) -> None:
        raise error

    monkeypatch.setattr(harness.lm_eval, "simple_evaluate", gone)
    monkeypatch.setattr(harness, "HarnessModel", lambda *_, **__: None)
    with pytest.raises(DataError, match="could not get its tasks arc_easy .*--data PATH"):
        harness.named(None, ["arc_easy"])  # type: ignore[arg-type]


def test_the_command_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from rorqual.cli.main import main

    rows = [{"query": f"Question: which whale sings {n} times?", "choices": ["blue", "grey"], "gold": n % 2} for n in range(6)]
    (tmp_path / "arc_easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, out = small.export(tmp_path / "tiny"), tmp_path / "h.json"
    command = [
        "eval",
        str(folder),
        "--tasks",
        "arc_easy",
        "--data",
        str(tmp_path),
        "--shots",
        "2",
        "--harness",
        "lm-eval",
        "--out",
        str(out),
    ]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["arc_easy", "acc"], ["arc_easy", "acc_norm"]]
    found = json.loads(out.read_text())
    assert found["harness"].startswith("lm-eval 0.4") and len(found["tasks"]["arc_easy"]["items"]) == 6
    assert main(command) == 1 and "is there already" in capsys.readouterr().err
    out = tmp_path / "x.json"
    assert (
        main(["eval", str(folder), "--tasks", "bpb", "--data", str(tmp_path / "arc_easy.jsonl"), "--harness", "lm-eval", "--out", str(out)])
        == 1
    )
    assert "bpb has no form in lm-eval" in capsys.readouterr().err and not out.exists()


class Dies(Progress):
    """Stops the run after some answers, as Ctrl-C would."""

    most = 0

    def put(self, task: str, records: Any) -> None:
        super().put(task, records)
        self.most -= len(records)
        if self.most < 0:
            raise KeyboardInterrupt


def _tasks(tmp_path: Path) -> tuple[list[Task], Path]:
    arc = [
        {"query": f"Question: which whale sings {n} times?", "choices": ["blue", "grey", "the pink one"], "gold": n % 3} for n in range(8)
    ]
    gsm = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(8)]
    for name, rows in (("arc_easy", arc), ("gsm8k", gsm)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [catalog.task("arc_easy"), replace(catalog.task("gsm8k"), max_tokens=8)], tmp_path  # type: ignore[type-var]


@pytest.mark.parametrize(("most", "lacks"), [(10, 12), (26, 0)])
def test_what_was_answered_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, lacks: int):
    """24 choices in batches of 6 and 8 answers: stopped in the likelihoods, and in the answers."""
    tasks, data = _tasks(tmp_path)
    monkeypatch.setattr(harness, "MOST_TOGETHER", 6)
    monkeypatch.setattr(harness.HarnessModel._scored, "__defaults__", (6,))
    whole = harness.evaluate(small.engine_model(), tasks, data, shots=1)
    with pytest.raises(KeyboardInterrupt), Dies(tmp_path / "h.json", {}) as progress:
        progress.most = most
        harness.evaluate(small.engine_model(), tasks, data, shots=1, progress=progress)
    model, asked = small.engine_model(), list[int]()
    likelihood = model.likelihood
    monkeypatch.setattr(model, "likelihood", lambda pairs: (asked.append(len(pairs)), likelihood(pairs))[1])
    with Progress(tmp_path / "h.json", {}) as progress:
        kept = {kind: len(some) for kind, some in progress.records.items()}
        found = harness.evaluate(model, tasks, data, shots=1, progress=progress)
    assert kept == {"loglikelihood": 12} if lacks else kept == {"loglikelihood": 24, "answer": 3}
    assert sum(asked) == lacks and found == whole


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_process_goes_on(tmp_path: Path):
    from rorqual.cli.main import main

    folder = small.export(tmp_path / "tiny")
    rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(200)]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", str(folder), "--tasks", "gsm8k", "--data", str(tmp_path), "--shots", "0", "--harness", "lm-eval", "--out"]
    partial = tmp_path / "k.json.partial"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": small.ROOT}
    process = subprocess.Popen([sys.executable, "-m", "rorqual", *command, str(tmp_path / "k.json")], **quiet)
    while not partial.exists() or len(partial.read_text().splitlines()) < 20:
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 20 <= len(partial.read_text().splitlines()) < 201
    assert main([*command, str(tmp_path / "k.json")]) == 0 and not partial.exists()
    assert main([*command, str(tmp_path / "w.json")]) == 0
    first, second = (json.loads((tmp_path / name).read_text())["tasks"] for name in ("k.json", "w.json"))
    assert first == second and len(first["gsm8k"]["items"]) == 200
