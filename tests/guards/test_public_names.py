"""Names that other code builds on, and what every public name owes its reader."""

from __future__ import annotations

import ast
import re

import pytest

from tests.guards import tree

# Whoever renames one of these breaks somebody: say so in CHANGELOG.md, and change it here.
PROMISED = {
    "errors": {"RorqualError", "ConfigError", "DataError", "TokenizerError", "CheckpointError", "RunError", "NonFiniteError", "DeviceError", "MissingExtraError"},
    "config": {"ModelConfig", "RopeScaling"},
    "presets": {"PRESETS", "Member", "member", "preset"},
    "planner.params": {"count", "ParameterCount"},
    "planner.flops": {"train_flops_per_token"},
    "planner.inventory": {"inventory"},
    "kernels.ops": {"backend_report"},
    "kernels.measure": {"gemm_gflops", "memory_gbps"},
    "model.layers": {"Linear", "GroupedLinear", "Linear.dense_weight", "GroupedLinear.fprop", "GroupedLinear.dgrad", "GroupedLinear.wgrad"},
    "model.mla": {"MLA", "LatentCache", "LatentCache.update"},
    "model.router": {"Router", "Routing", "route"},
    "model.balance": {"update_bias", "max_violation"},
    "model.moe": {"MoE", "MoE.dispatch", "MoE.compute", "MoE.combine", "Dispatcher", "Dispatcher.dispatch", "Dispatcher.combine", "Experts"},
    "model.transformer": {"CausalLM", "CausalLM.forward", "CausalLM.mtp_hidden", "CausalLM.logits", "CausalLM.init_weights", "Output"},
    "tokenizer.bpe": {"train", "load", "Tokenizer", "Tokenizer.encode", "Tokenizer.decode", "Tokenizer.save"},
    "checkpoint.reader": {"load"},
    "checkpoint.writer": {"export"},
    "data.config": {"DataConfig", "BuildConfig"},
    "data.loader": {"PackedDataset", "PackedDataset.batch"},
    "train.hyperparams": {"RunConfig", "TrainConfig", "OptimizerConfig"},
    "train.schedules": {"LearningRateSchedule", "BatchSchedule", "GammaSchedule", "LambdaSchedule"},
    "train.loss": {"compute_loss", "evaluate_nll", "StepLoss"},
    "train.trainer": {"train"},
    "cli.main": {"main", "VERBS"},
}  # fmt: skip


SHORT = 6  # lines of a method that its name and its class may explain


@pytest.mark.parametrize("module", PROMISED)
def test_promised_names_exist(module):
    path = tree.PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    assert path.is_file(), f"{path} is promised and gone"
    assert PROMISED[module] - tree.symbols(path) == set()


@pytest.mark.parametrize("path", [p for p in tree.sources() if p.stem != "__init__"], ids=tree.name_of)
def test_public_names_are_explained_and_typed(path):
    module = tree.parsed(path)
    assert ast.get_docstring(module), f"{path} has no docstring: one line of purpose, the report's section, the trap avoided"
    bare = []
    for node in module.body:
        inner = [] if not isinstance(node, ast.ClassDef) or node.bases else node.body  # an override is explained by what it overrides
        for member in (node, *(part for part in inner if part.end_lineno - part.lineno > SHORT)):
            public = isinstance(member, ast.FunctionDef | ast.ClassDef) and not member.name.startswith("_")
            if public and not ast.get_docstring(member):
                bare.append(f"{member.name} (line {member.lineno})")
    assert not bare, f"{path}: public and without a docstring: {', '.join(bare)}"


@pytest.mark.parametrize("path", tree.sources(), ids=tree.name_of)
def test_names_say_what_they_bring(path):
    """No star imports; a module with `__all__` lists names that exist; nothing passes `**kwargs` on unread."""
    module = tree.parsed(path)
    stars = [
        node.lineno for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]
    assert not stars, f"{path}: star import in lines {stars}"
    passed = [call.lineno for function in _functions(module) for call in _own_calls(function) if _passes_kwargs(call)]
    assert not passed, f"{path}: **kwargs passed on in lines {passed}; name the arguments"
    bound = tree.symbols(path) | {a.asname or a.name for n in module.body if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names}
    for node in module.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names = ast.literal_eval(node.value)
            assert set(names) <= bound and names == sorted(names), f"{path}: __all__ is unsorted or names what is not there"
            public = {n.name for n in module.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")}
            assert public <= set(names), f"{path}: public but not in __all__: {sorted(public - set(names))}"


def _functions(module: ast.Module) -> list[ast.FunctionDef]:
    members = [*module.body, *(inner for node in module.body if isinstance(node, ast.ClassDef) for inner in node.body)]
    return [node for node in members if isinstance(node, ast.FunctionDef)]


def _own_calls(function: ast.FunctionDef) -> list[ast.Call]:
    """Calls of the function itself: a wrapper made inside it may hand on what it was given."""
    wrappers = {
        id(n) for inner in ast.walk(function) if isinstance(inner, ast.FunctionDef) and inner is not function for n in ast.walk(inner)
    }
    return [node for node in ast.walk(function) if isinstance(node, ast.Call) and id(node) not in wrappers]


def _passes_kwargs(call: ast.Call) -> bool:
    return any(keyword.arg is None and ast.unparse(keyword.value) == "kwargs" for keyword in call.keywords)


@pytest.mark.parametrize("path", tree.sources(), ids=tree.name_of)
def test_no_promise_is_left_in_the_code(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", text) == []
