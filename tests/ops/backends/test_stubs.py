"""The stubs of the extensions name what the extensions have, with as many arguments as their calls pass."""

import ast
import re
from pathlib import Path

import pytest

from mmfast.ops import extensions

ROOT = Path(__file__).parents[3]


def stub(name):
    tree = ast.parse((ROOT / "csrc" / "stubs" / f"{name}.pyi").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    values = {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    return functions, values


@pytest.mark.parametrize(
    ("name", "sources"), [("_mmfast_cpu", ["bindings.cpp"]), ("_mmfast_cuda", ["cuda/bindings.cpp"])]
)
def test_names_are_those_of_the_sources(name, sources):
    """And of the module, where it is built."""
    functions, values = stub(name)
    text = "".join((ROOT / "csrc" / file).read_text() for file in ["serve.h", *sources])
    table = re.search(r"#define MMFAST_METHODS(.*?)\n\n", text, re.S)[1] + re.search(r"methods\[\] = (.*?);", text)[1]
    named = re.findall(r'fast<.*?>\("(\w+)"\)', table) + re.findall(r'm\.def\("(\w+)"', text)
    assert functions == set(named) and len(functions) == len(named)
    assert values == set(re.findall(r'm\.attr\("(\w+)"', text))
    module, missing = extensions.load(name)
    if module is None:
        pytest.skip(missing)
    assert functions | values == {x for x in vars(module) if not x.startswith("_")}
