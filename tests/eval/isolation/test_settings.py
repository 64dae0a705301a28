"""Which places Landlock opens, and which of several paths are kept."""

from __future__ import annotations

from rorqual.eval.isolation.probe import outermost
from rorqual.eval.isolation.settings import allowed


def test_hidden_folders_are_left_out(tmp_path):
    for name in ("bin", "lib/py/site-packages", "lib/py/json"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "lib/py/os.py").write_text("")
    root = str(tmp_path)
    assert allowed([root, f"{root}/absent"], [f"{root}/lib/py/site-packages"]) == {
        root: "list", f"{root}/bin": "all", f"{root}/lib": "list", f"{root}/lib/py": "list", f"{root}/lib/py/json": "all", f"{root}/lib/py/os.py": "all",
    }  # fmt: skip
    assert allowed([root], []) == {root: "all"}


def test_outermost(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    assert outermost([f"{tmp_path}/a/b", f"{tmp_path}/a", "/usr/lib", f"{tmp_path}/c"]) == [f"{tmp_path}/a"]
