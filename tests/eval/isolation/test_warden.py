"""The processes behind a run: what is staged for programs, work folders, what stays when someone is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rorqual.eval.isolation import launch, processes, staging, supervise, warden
from tests.eval import boxes


def test_the_closed_folder_on_a_way(tmp_path):
    (tmp_path / "a/b/c").mkdir(parents=True)
    for place in (tmp_path, *tmp_path.parents):
        if not place.stat().st_mode & 1:
            closed = place
            break
    else:
        (tmp_path / "a/b").chmod(0o700)
        closed = tmp_path / "a/b"
    assert Path(staging.closed_folder(str(tmp_path / "a/b/c"))) in (closed, *closed.parents) and staging.closed_folder("/usr/bin") is None
    staging.stage(["/usr/bin"])  # nothing to do


def test_folders_and_sizes(tmp_path):
    assert launch._folders(["a/b/c.py", "d.py", "a/e.py"]) == ["a", "a/b"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x/f").write_bytes(bytes(1 << 16))
    assert launch._usage(str(tmp_path), 1 << 30, 100) == (1 << 16, 3)
    (tmp_path / "x").chmod(0)
    launch.remove(str(tmp_path))
    assert not tmp_path.exists()


def test_very_deep_folders_are_removed(tmp_path):
    place = os.open(tmp_path, os.O_RDONLY)
    for _ in range(600):
        os.mkdir("deepdeep", dir_fd=place)
        inner = os.open("deepdeep", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    assert launch._usage(str(tmp_path), 1 << 30, 20_000)[1] == 20_001
    launch.remove(str(tmp_path))
    assert not tmp_path.exists()


_CALLER = """
import sys
from rorqual.eval.sandbox import Sandbox
box = Sandbox(mechanism=sys.argv[1])
print("ready", flush=True)
box.run("import time\\nopen('f', 'w').write('x')\\ntime.sleep(50 + 0.%d)" % int(sys.argv[2]), seconds=60)
"""


@pytest.mark.parametrize("mechanism", [pytest.param("bubblewrap", marks=pytest.mark.slow), "landlock"])
def test_a_killed_caller_leaves_nothing(mechanism):
    boxes.opened(mechanism)
    before = set(os.listdir("/tmp"))
    caller = subprocess.Popen([sys.executable, "-c", _CALLER, mechanism, "7"], stdout=subprocess.PIPE)
    assert caller.stdout.readline() == b"ready\n"
    time.sleep(0.5)
    wardens = processes.children(caller.pid)
    below = [pid for one in wardens for pid in processes.below(one)]
    assert wardens and below
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    caller.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in (*wardens, *below)):
        time.sleep(0.05)
    assert not [pid for pid in (*wardens, *below) if os.path.exists(f"/proc/{pid}")]
    assert not [name for name in set(os.listdir("/tmp")) - before if name.startswith(f"rorqual-sandbox-{wardens[0]}-")]


def test_folders_of_ended_wardens_are_swept(tmp_path):
    (tmp_path / "rorqual-sandbox-4194303-x").mkdir()
    (tmp_path / f"rorqual-sandbox-{os.getpid()}-x").mkdir()
    made = warden._base(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == sorted([f"rorqual-sandbox-{os.getpid()}-x", os.path.basename(made)])
    assert os.stat(made).st_mode & 0o777 == 0o711


def test_output_is_packed():
    assert supervise._packed(b"\xff\n") == "/wo="
