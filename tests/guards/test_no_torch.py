"""Help, and every room that needs no torch, start without it: checked in fresh processes, and in the source for what is behind branches.

Start-up times are printed by `python benchmarks/startup.py`; what makes them small is held here.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from rorqual.cli.main import VERBS
from tests.guards import tree

HEAVY = ("torch", "numpy", "pyarrow", "tokenizers", "safetensors", "transformers", "tensorboard")
VERB_NAMES = [verb for verbs in VERBS.values() for verb in verbs]


def _loaded_after(code: str) -> list[str]:
    """Which of HEAVY a fresh process has imported after `code`."""
    report = f"import sys, json\nprint('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, timeout=60, cwd=tree.ROOT)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("verb", ["", "data", "tokenizer", *VERB_NAMES])
def test_help_of_every_verb_imports_nothing_heavy(verb):
    argv = [*verb.split(), "--help"]
    code = f"from rorqual.cli.main import main\ntry:\n    code = main({argv!r})\nexcept SystemExit as stop:\n    code = stop.code\nassert not code, code"
    assert _loaded_after(code) == []


def _belongs(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == f"rorqual.{name}" or module.startswith(f"rorqual.{name}.") for name in rooms)


def test_importing_the_torch_free_rooms_imports_no_torch():
    modules = [tree.name_of(path) for path in tree.sources() if path.stem != "__main__"]
    light = [name for name in modules if _belongs(name, tree.NO_TORCH)]
    numeric = [name for name in modules if _belongs(name, tree.NO_TORCH_BUT_NUMPY)]
    assert len(light) > 10 and len(numeric) > 5
    assert _loaded_after("import " + ", ".join(light)) == []
    assert "torch" not in _loaded_after("import " + ", ".join(numeric))


@pytest.mark.parametrize("path", [p for p in tree.sources() if _belongs(tree.name_of(p), tree.NO_TORCH_BUT_NUMPY)], ids=tree.name_of)
def test_data_and_tokenizer_never_import_torch_at_all(path):
    assert not [item for item in tree.imports(path) if item.module.split(".")[0] in ("torch", "transformers")]
