"""Control groups: found by what stands in /proc, made, entered, broken and removed; the sandbox uses one where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rorqual.eval.isolation import cgroup
from rorqual.eval.sandbox import Sandbox
from tests.eval import boxes


def _process(root: Path, groups: str, mounts: str) -> str:
    root.mkdir(exist_ok=True)
    (root / "cgroup").write_text(groups)
    (root / "mountinfo").write_text(mounts)
    return str(root)


def test_groups_near_a_process_by_hand(tmp_path):
    """A delegated slice: its own group has processes and hands nothing down, the one above it does."""
    unified = tmp_path / "unified"
    own = unified / "user.slice" / "app.slice" / "me.scope"
    own.mkdir(parents=True)
    mounts = f"41 31 0:38 / {unified} rw,relatime - cgroup2 cgroup2 rw\n35 31 0:32 /box {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
    process = _process(tmp_path / "proc", "4:memory:/box/me\n0::/user.slice/app.slice/me.scope\n", mounts)
    assert cgroup._candidates(process) == [(str(own), 2), (str(own.parent), 2), (f"{tmp_path}/memory/me", 1)]
    (own / "cgroup.subtree_control").write_text("")
    (own.parent / "cgroup.subtree_control").write_text("cpu memory pids\n")
    group = cgroup.Group(str(own.parent), 2, "a", 1 << 20)
    assert (Path(group.path) / "memory.max").read_text() == "1048576" and (Path(group.path) / "memory.swap.max").read_text() == "0"
    (Path(group.path) / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert group.broken()
    group.enter()
    assert (Path(group.path) / "cgroup.procs").read_text() == "0"


def test_without_a_group_there_is_none(tmp_path):
    process = _process(tmp_path / "proc", "0::/\n", f"41 31 0:38 / {tmp_path}/none rw - cgroup2 cgroup2 rw\n")
    assert cgroup.find(process) == ("", 0) and cgroup.find(str(tmp_path / "nothing")) == ("", 0)


def test_groups_of_killed_runs_are_cleared(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for name in (f"rorqual-run-{gone.pid}-0", f"rorqual-run-{os.getpid()}-0", "other"):
        (tmp_path / name).mkdir()
    cgroup.clear(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["other", f"rorqual-run-{os.getpid()}-0"]


def _here() -> tuple[str, int]:
    found = cgroup.find()
    if not found[0]:
        pytest.skip("this process may make no control group with a memory limit here")
    return found


def test_the_kernel_holds_a_group():
    folder, version = _here()
    group = cgroup.Group(folder, version, f"rorqual-test-{os.getpid()}", 48 << 20)
    try:
        done = subprocess.run([sys.executable, "-c", "x = bytearray(1 << 28)"], preexec_fn=group.enter, check=False)
        assert done.returncode == -9 and group.broken()
    finally:
        group.remove()
    assert not os.path.exists(group.path)


GREEDY = {
    "js": "const all = []; for (;;) all.push(Buffer.alloc(1 << 26, 1));",
    "python": "import os, time\nfor _ in range(4):\n    if os.fork() == 0: break\nx = bytearray(b'12345678') * (100 << 17)\ntime.sleep(9)",  # 100 MiB each
}  # fmt: skip


@pytest.mark.parametrize("groups", [True, False], ids=["group", "watched"])
@pytest.mark.parametrize("language", [pytest.param("js", marks=pytest.mark.slow), "python"])
def test_memory_is_held_with_and_without_a_group(monkeypatch, groups, language):
    boxes.best()
    if groups:
        folder, _ = _here()
    else:
        monkeypatch.setattr(cgroup, "find", lambda: ("", 0))
    with Sandbox() as box:
        assert box.describe()["memory"].startswith("cgroup version" if groups else "watched")
        if language not in box.describe()["languages"]:
            pytest.skip(f"no tools for {language}")
        assert box.run(GREEDY[language], language=language, seconds=8, memory=1 << 28).limit == "memory"
    if groups:
        assert not [name for name in os.listdir(folder) if name.startswith("rorqual-run-")]
