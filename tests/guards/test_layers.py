"""A folder imports only from folders above it, whatever the depth of the import; the model knows nothing of ranks, FP8 or files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.guards import tree


@pytest.mark.parametrize("path", tree.sources(), ids=tree.name_of)
def test_imports_go_upwards_only(path):
    here = tree.room(tree.name_of(path))
    if here in ("", "__main__"):
        return
    assert here in tree.ORDER, f"{path} is in no known room; rooms are {', '.join(tree.ORDER)}"
    for item in tree.imports(path):
        if item.module.startswith("rorqual."):
            there = tree.room(item.module)
            assert tree.ORDER.index(there) <= tree.ORDER.index(here), f"{path}:{item.line} imports {item.module}: {there} is below {here}"


def test_package_files_are_empty_but_for_the_two_lazy_names():
    assert [path for path in tree.PACKAGE.rglob("__init__.py") if path.read_text().strip()] == [tree.PACKAGE / "__init__.py"]
    code = "import sys, rorqual; print([m for m in sys.modules if m.startswith(('torch', 'numpy', 'rorqual.'))]); print(rorqual.LLM.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "rorqual.inference.llm"]
    with pytest.raises(AttributeError, match="nothing"):
        import rorqual

        rorqual.nothing  # noqa: B018


@pytest.mark.parametrize("path", tree.sources(tree.PACKAGE / "model"), ids=tree.name_of)
def test_the_model_is_pure(path):
    names = [item.module for item in tree.imports(path)]
    for banned in ("torch.distributed", "os", "safetensors", "pathlib", "rorqual.fp8", "rorqual.parallel"):
        assert not any(name == banned or name.startswith(f"{banned}.") for name in names), f"{path} imports {banned}"


def test_no_cycle_between_files():
    edges = {tree.name_of(p): {i.module for i in tree.imports(p) if i.module.startswith("rorqual.") and not i.lazy} for p in tree.sources()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for other in edges.get(name, ()):
                if other != name:
                    visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_nothing_unpickles_or_evaluates_what_a_user_hands_in():
    """F06: no pickle anywhere; torch.load and numpy's allow_pickle are the ways in that look harmless."""
    for path in tree.sources():
        assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve"} & {item.module for item in tree.imports(path)}, path
        text = path.read_text(encoding="utf-8")
        assert "torch.load(" not in text and "allow_pickle=True" not in text, path
