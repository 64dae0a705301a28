"""Teachers: a folder's engine and a server give drafts as they end, and a server that goes away loses nothing."""

from __future__ import annotations

import threading

import pytest

from rorqual.errors import ConfigError
from rorqual.inference.client import Client
from rorqual.posttrain.generate import ByDomain, Drawing, ServerTeacher, TeacherGone, open_teacher
from tests.posttrain import teachers
from tests.posttrain.tiny_chat import write_model

ASKED = [(f"q{number}", [{"role": "user", "content": f"{number}?"}]) for number in range(6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("teacher"))


def test_a_folder_s_drafts_depend_on_seed_and_name_alone(folder):
    teacher = open_teacher(str(folder))
    how = Drawing(n=2, temperature=1.0, max_tokens=8, seed=5)
    found = dict(teacher.draw(ASKED, how))
    assert sorted(found) == [name for name, _ in ASKED]
    assert all(len(drafts) == 2 and drafts[0] != drafts[1] for drafts in found.values())
    assert dict(teacher.draw(ASKED[3:4], how)) == {"q3": found["q3"]}  # alone as in company
    assert dict(teacher.draw(ASKED[3:4], Drawing(n=2, temperature=1.0, max_tokens=8, seed=6))) != {"q3": found["q3"]}
    assert teacher.describe()["kind"] == "folder" and teacher.describe()["style"] == "v3"


def test_reasoning_is_told_by_the_prompt(folder):
    teacher = open_teacher(str(folder))
    drafts = dict(teacher.draw(ASKED[:1], Drawing(temperature=1.0, max_tokens=6, thinking=True)))["q0"]
    assert drafts[0].cut and not drafts[0].closed and drafts[0].content == "" and drafts[0].tokens == 6


def test_a_question_that_does_not_fit_is_told_and_the_others_are_answered(folder):
    long = ("long", [{"role": "user", "content": "sings " * 400}])
    found = dict(open_teacher(str(folder)).draw([long, *ASKED[:1]], Drawing(max_tokens=4)))
    assert "context is 256" in found["long"] and len(found["q0"]) == 1


def _teacher(url, **options):  # type: ignore[no-untyped-def]
    return ServerTeacher(Client(url, retries=1, sleep=lambda _: None), "whale", **options)


def test_a_server_s_answers_are_split(folder):
    bodies = []

    def reply(body):  # type: ignore[no-untyped-def]
        bodies.append(body)
        text = body["messages"][-1]["content"]
        return 200, {
            "0?": teachers.message("a", reasoning_content="r\n"), "1?": teachers.message("<think>\nr\n</think>\n\na"),
            "2?": teachers.message("<think>never ends", "length"), "3?": teachers.message("", "length", reasoning_content="r"),
            "4?": {"choices": []}, "5?": teachers.message("plain"),
        }[text]  # fmt: skip

    with teachers.server(reply) as url:
        found = dict(_teacher(url).draw(ASKED, Drawing(n=2, temperature=1.0, max_tokens=9, thinking=True)))
        assert open_teacher(url).describe() == {"kind": "server", "url": url, "model": "whale"}
    assert [(d.reasoning, d.content, d.cut, d.closed) for name in ("q0", "q1", "q2", "q3", "q5") for d in found[name][:1]] == [
        ("r", "a", False, True), ("r", "a", False, True), ("never ends", "", True, False), ("r", "", True, False), ("", "plain", False, True),
    ]  # fmt: skip
    assert found["q4"] == "the server's answer has no message"
    own = [body for body in bodies if body["messages"][-1]["content"] == "0?"]
    assert own[0]["seed"] != own[1]["seed"] and own[0]["chat_template_kwargs"]["thinking"] is True and own[0]["max_tokens"] == 9


def test_a_refused_question_is_its_own_and_a_server_that_goes_away_is_everybody_s():
    lock, seen = threading.Lock(), []

    def reply(body):  # type: ignore[no-untyped-def]
        with lock:
            seen.append(body["messages"][-1]["content"])
        if seen[-1] == "1?":
            return 400, {"error": {"message": "too long"}}
        return (200, teachers.message("yes")) if len(seen) < 4 else (503, {"error": {"message": "shutting down"}})

    found = []
    with teachers.server(reply) as url, pytest.raises(TeacherGone, match="shutting down"):
        for one in _teacher(url, parallel=1).draw(ASKED, Drawing()):
            found.append(one)
    assert [name for name, _ in found] == ["q0", "q1", "q2"] and "too long" in found[1][1]


def test_a_server_that_is_not_there_is_told_at_once():
    with teachers.server(lambda body: (200, {})) as url:
        pass
    with pytest.raises(TeacherGone, match="the teacher answers no more"):
        list(_teacher(url).draw(ASKED[:1], Drawing()))


def test_equal_draws_are_refused():
    with pytest.raises(ConfigError, match="temperature 0 makes them equal"):
        Drawing(n=2, temperature=0.0)


def test_every_domain_has_its_expert():
    maths, others = teachers.Scripted(lambda name, *_: f"maths {name}"), teachers.Scripted(lambda name, *_: f"other {name}")
    domains = {"q0": "math", "q1": "code", "q2": "math", "q3": "law"}
    found = dict(ByDomain({"math": maths, "*": others}, domains).draw(ASKED[:4], Drawing()))
    assert {name: drafts[0].content for name, drafts in found.items()} == {
        "q0": "maths q0",
        "q1": "other q1",
        "q2": "maths q2",
        "q3": "other q3",
    }
    with pytest.raises(ConfigError, match="no teacher for the domain code, law"):
        ByDomain({"math": maths}, domains)
