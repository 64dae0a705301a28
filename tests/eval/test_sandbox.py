"""What runs give back: output, status, limits, files, languages; refusal where nothing holds. Ways out are tried in test_sandbox_escape.py."""

from __future__ import annotations

import threading
import time

import pytest

from rorqual.errors import ConfigError, DeviceError
from rorqual.eval import sandbox
from rorqual.eval.isolation import probe
from rorqual.eval.sandbox import Limits, Sandbox
from tests.eval import boxes


@pytest.fixture(params=["best", pytest.param("landlock", marks=pytest.mark.slow)])
def box(request):
    return boxes.best() if request.param == "best" else boxes.opened(request.param)


def test_output_input_status_and_files(box):
    done = box.run(
        "import sys\nprint(input(), open('d/e.txt').read())\nprint('w', file=sys.stderr)\nsys.exit(3)", {"d/e.txt": "é"}, stdin="hello"
    )
    assert (done.returncode, done.stdout, done.stderr, done.timed_out, done.limit) == (3, "hello é\n", "w\n", False, "")
    assert box.run(["python3", "a.py"], {"a.py": "print(__name__)"}).stdout == "__main__\n"
    assert box.run("import os; os.abort()").returncode == -6
    assert box.run(b"\xff".decode("latin-1") + "=1\nimport sys; sys.stdout.buffer.write(b'\\xff')").stdout == "�"


def test_the_environment_is_empty_and_nothing_stays_from_run_to_run(box):
    assert box.run("import os; print(sorted(os.environ))").stdout.count("'") <= 2 * 6
    box.run("open('left', 'w').write('x')")
    assert box.run("import os; print(os.listdir('.'))").stdout == "['main.py']\n"


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        ("while True: pass", "seconds"),
        ("import time; time.sleep(60)", "seconds"),
        ("while True: print('x' * 10000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 10000)", "output"),
    ],
)
def test_limits_by_name(box, source, limit):
    start = time.monotonic()
    done = box.run(source, seconds=1)
    assert (done.limit, done.timed_out) == (limit, limit == "seconds") and done.returncode == -9
    assert time.monotonic() - start < 2 and len(done.stdout) <= 1 << 20


def test_memory_of_a_process_and_of_all_together(box):
    assert "MemoryError" in box.run("x = bytearray(1 << 29)", memory=1 << 28).stderr
    several = (
        "import os, time\nfor _ in range(4): os.fork()\nx = bytearray(60 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(9)"
    )
    assert box.run(several, memory=1 << 28, seconds=8).limit == "memory"


def test_files_are_limited(box):
    done = box.run("f = open('big', 'wb')\ntry:\n    f.write(bytes(32 << 20)); f.flush()\nexcept OSError as e:\n    print(e.errno)")
    assert done.stdout == "27\n" or done.limit == "file_size"
    many = "for n in range(1000):\n    open(str(n), 'wb').write(bytes(1 << 20))"
    done = box.run(many, limits=Limits(disk=8 << 20))
    assert done.limit == "disk" or "No space left" in done.stderr
    assert "Too many open files" in box.run("x = [open('main.py') for _ in range(200)]").stderr


def test_runs_from_several_threads(box):
    out: dict[int, str] = {}

    def one(number: int) -> None:
        out[number] = box.run(f"print({number})").stdout

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == {number: f"{number}\n" for number in range(6)}


def test_a_warden_that_was_ended_is_started_again():
    boxes.best()
    with Sandbox() as box:
        box._warden.kill()
        box._warden.wait()
        assert box.run("print(1)").stdout == "1\n"


def test_bad_requests(box):
    with pytest.raises(ConfigError, match="below the work folder"):
        box.run("1", {"../a": "x"})
    with pytest.raises(ConfigError, match="must be one of python"):
        box.run("1", language="cobol")
    with pytest.raises(DeviceError, match="could not (start|run)"):
        box.run(["/usr/bin/nothing-of-that-name"])


def test_nothing_is_run_where_nothing_holds(monkeypatch):
    monkeypatch.setattr(probe, "missing", lambda mechanism: "absent")
    with pytest.raises(DeviceError, match="bubblewrap: absent; landlock: absent.*nothing is run without one"):
        Sandbox()
    with pytest.raises(ConfigError, match="must be bubblewrap or landlock"):
        Sandbox(mechanism="hope")


def test_a_sandbox_that_does_not_hold_is_refused(monkeypatch):
    boxes.best()
    monkeypatch.setattr(probe, "_ESCAPES", "print('not held: it reads /etc/passwd')")
    with pytest.raises(DeviceError, match="not held: it reads /etc/passwd"):
        Sandbox()


def test_description():
    found = boxes.best().describe()
    assert found["mechanism"] in probe.MECHANISMS and "python" in found["languages"] and found["own_uid"] in (True, False)
    assert sandbox.Result(0, "", "", False, "").limit == ""
