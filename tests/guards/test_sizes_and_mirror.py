"""Files stay readable in one sitting, and every test file stands where its source file would make one look."""

from __future__ import annotations

import pytest

from tests.guards import tree

FILE_LINES = 400
MODEL_LINES = 1200


def _lines(path) -> int:  # type: ignore[no-untyped-def]
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("folder", ["rorqual", "tests", "benchmarks", "examples"])
def test_no_file_is_two_rooms(folder):
    long = {str(path.relative_to(tree.ROOT)): _lines(path) for path in tree.sources(tree.ROOT / folder) if _lines(path) > FILE_LINES}
    assert not long, f"over {FILE_LINES} lines: {long}; a file this long is usually two rooms"


def test_the_model_is_readable_in_one_sitting():
    assert sum(map(_lines, tree.sources(tree.PACKAGE / "model"))) <= MODEL_LINES


def test_test_files_mirror_source_files():
    """tests/model/test_mla.py tests rorqual/model/mla.py; test_mla_cache.py is a second file about the same source."""
    tests = tree.ROOT / "tests"
    lost = []
    for path in tests.rglob("test_*.py"):
        folder, subject = path.relative_to(tests).parent, path.stem.removeprefix("test_")
        if folder.parts[:1] in (("guards",), ("benchmarks",), ("reference",)):
            continue
        stems = {source.stem for source in (tree.PACKAGE / folder).glob("*.py")}
        if not any(subject == stem or subject.startswith(f"{stem}_") for stem in stems):
            lost.append(str(path.relative_to(tree.ROOT)))
    assert not lost, f"no source file belongs to {lost}"


def test_every_source_file_has_tests():
    """By name, or imported by a test file of the same folder."""
    missing = []
    for path in tree.sources():
        folder = tree.ROOT / "tests" / path.relative_to(tree.PACKAGE).parent
        used = {item.module for test in folder.glob("*.py") for item in tree.imports(test)}
        if not path.stem.startswith("__") and not list(folder.glob(f"test_{path.stem}*.py")) and tree.name_of(path) not in used:
            missing.append(str(path.relative_to(tree.ROOT)))
    assert not missing, f"no test file for {missing}"


def test_the_root_is_short():
    visible = [
        path.name
        for path in tree.ROOT.iterdir()
        if not path.name.startswith(".") and path.name not in ("runs", "data", "shared", "build", "dist")
    ]
    assert len(visible) <= 14, visible
