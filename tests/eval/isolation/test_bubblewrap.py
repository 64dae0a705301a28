"""The command line of bubblewrap."""

from __future__ import annotations

from rorqual.eval.isolation import bubblewrap


def test_arguments():
    out = bubblewrap.arguments(
        "/usr/bin/bwrap", readable=["/opt/py"], hidden=["/opt/py/site"], files={"a/b.py": 7}, folders=["a"], disk=8 << 20, environment={"HOME": "/tmp"},
        seccomp=8, report=9, argv=["python3", "a/b.py"],
    )  # fmt: skip
    text = " ".join(out)
    for part in (
        "--unshare-user --unshare-pid --unshare-net",
        "--disable-userns --die-with-parent --new-session --cap-drop ALL",
        "--ro-bind /usr /usr",
    ):
        assert part in text
    assert text.index("--ro-bind /opt/py /opt/py") < text.index("--tmpfs /opt/py/site") < text.index("--remount-ro / ")
    assert "--size 8388608 --tmpfs /tmp --dir /tmp/a --file 7 /tmp/a/b.py --setenv HOME /tmp" in text
    assert text.endswith("--remount-ro / --chdir /tmp --seccomp 8 -- python3 a/b.py") and "/etc/passwd" not in text and "--bind" not in out
