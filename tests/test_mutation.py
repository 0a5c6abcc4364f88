"""The mutants: what is changed and what is not, and the ones said to be equivalent; the command at work (slow)."""

import ast
import json
import subprocess
import sys

import pytest

from tests.mutation.__main__ import CAUGHT, Found, chosen, equivalents, sources
from tests.mutation.children import ROOT
from tests.mutation.coverage_map import File, Map
from tests.mutation.mutants import mutants

# A line of source and what it becomes: all of it.
CHANGES = {
    "y = a < b": ["y = (a <= b)"],
    "y = a < b < c": ["y = (a <= b < c)", "y = (a < b <= c)"],
    "y = a is b": ["y = (a is not b)"],
    "y = a + b": ["y = (a - b)"],
    "y += a": ["y -= a", "pass"],
    "y = -a": ["y = a"],
    "y = not a": ["y = a"],
    "y = a and b or c": ["y = ((a and b) and c)", "y = (a or b) or c"],
    "y = a if b else c": ["y = a if (not b) else c"],
    "y = a if b == c else d": ["y = a if (b != c) else d"],
    "y = [a for a in b if c]": ["y = [a for a in b if (not c)]"],
    "y = 0.5": ["y = (1.5)", "y = (-0.5)"],
    "y = True": ["y = (False)"],
    "y = f(a, b)": ["y = (f(b, a))"],
    "y = f(a, a)": [],
    "y = max(a, b)": ["y = min(a, b)"],
    "y = f(*a, b)": [],
    "y = f(a, k=b)": ["y = (f(a))"],
    "y = zip(a, k, strict=True)": ["y = (zip(k, a, strict=True))"],
    "y = min(a)": ["y = max(a)"],
    "y = a.mean()": ["y = a.sum()"],
    "f(a)": ["pass"],
    "y.z = a": ["pass"],
    "y = y[a]": ["pass"],
    "del a": ["pass"],
    "raise E(f(1), 2)": ["pass"],
    "raise NotImplementedError": [],
    "if a: b = c": ["if (not a): b = c"],
    "while a: break": ["while (not a): break", "while a: pass"],
    # Neither what it says nor what it is typed as: nothing that a test could see, or should fix.
    "'a text'": [],
    "y = f'{a + 1}'": [],
    "assert a == 1": [],
    "import a": [],
    "y: f(1, 2)": [],
    "y = TypeVar('y', bound=f(1, 2))": [],
    "@f(1, 2)\ndef g(a: 1 = b) -> 3: ...": [],
    "if TYPE_CHECKING: f(1)": [],
}


@pytest.mark.parametrize("line", CHANGES)
def test_the_changes_of_a_line(line):
    assert sorted(mutant.source for mutant in mutants("m.py", line)) == sorted(CHANGES[line])


def test_what_is_returned_becomes_none():
    text = "def f(a):\n    if a:\n        return\n    return a\n"
    assert [m.source for m in mutants("m.py", text) if m.kind == "return"] == [text[:-2] + "None\n"]


def test_lines_are_those_a_test_comes_by():
    """All of a simple statement, and of a compound one its head."""
    text = "# é ü\ny = (f('é'),\n    a + b)\nif (a and\n        b):\n    c()\n"
    found = mutants("m.py", text)
    assert (found[0].before, found[0].after) == ("a + b)", "(a - b))")
    assert [(m.now, m.lines) for m in found] == [
        ("a - b", (2, 3)), ("not (a and b)", (4, 5)), ("a or b", (4, 5)), ("pass", (6, 6))
    ]  # fmt: skip


def test_a_mutant_says_where_it_differs():
    (mutant,) = mutants("m.py", f"y = {'a' * 50} + {'b' * 50}")
    assert str(mutant) == f"m.py:1: ...{'a' * 29} + {'b' * 29}...  ->  ...{'a' * 29} - {'b' * 29}..."


def test_every_module_has_mutants_and_each_is_another_program():
    (module,) = sources(["training/ema.py"])
    found = mutants(module, (ROOT / module).read_text())
    programs = {ast.dump(ast.parse(m.source)) for m in found}
    assert len(programs) == len({m.key for m in found}) == len(found) > 15
    assert ast.dump(ast.parse((ROOT / module).read_text())) not in programs


def test_a_sample_is_the_beginning_of_a_larger_one_and_follows_from_the_seed():
    few, more, other = (chosen("mmfast/loss.py", n, seed) for n, seed in ((5, 0), (9, 0), (9, 1)))
    assert few == more[:5] and len(more) == 9 and more != other
    everything = chosen("mmfast/loss.py", 0, 0)
    assert len(everything) > 100 and everything[:9] == more


def test_modules_are_named_from_the_package():
    assert sources(["loss.py", "mmfast/loss.py"]) == ["mmfast/loss.py"]
    every = sources([])
    assert "mmfast/ops/linear.py" in every and not any("triton" in name for name in every)
    with pytest.raises(SystemExit, match=r"module is 'lost\.py'; there is no mmfast/lost\.py"):
        sources(["lost.py"])


@pytest.mark.slow
def test_equivalent_mutants_are_mutants_and_have_a_reason():
    """One whose line has changed since is no longer known to be equivalent."""
    known = equivalents()
    for module in {module for module, _, _ in known}:
        found = {(module, m.before, m.after) for m in mutants(module, (ROOT / module).read_text())}
        lost = {key for key in known if key[0] == module} - found
        assert not lost
    assert all(len(reason.split()) > 3 for reason in known.values())


def test_what_was_caught_stays_so_and_a_survivor_is_tried_again_when_tests_change(tmp_path):
    one, other, third = chosen("mmfast/loss.py", 3, 0)
    for tests, known in (("a", (None, None)), ("a", (CAUGHT, "survived")), ("b", (CAUGHT, None))):
        found = Found(tmp_path / "found.jsonl", tests)
        assert (found.outcome(one), found.outcome(other)) == known and found.outcome(third) is None
        found.keep(one, CAUGHT)
        found.keep(other, "survived")


def test_the_tests_of_a_mutant_are_those_that_come_by(tmp_path):
    where = Map(tmp_path)
    where.files = {
        "tests/test_far.py": File({"tests/test_far.py::a": 1.0, "tests/test_far.py::b": 50.0}, {"m/n.py": {1: [0, 1]}}),
        "tests/test_n.py": File({"tests/test_n.py::a": 3.0, "tests/test_n.py::b": 2.0}, {"m/n.py": {1: [1], 2: [-1]}}),
        "tests/m/test_o.py": File(
            {"tests/m/test_o.py::c": 1.0, "tests/m/test_o.py::a": 7.0}, {"m/n.py": {3: [1]}}, {"m/n.py": [4]}
        ),
    }

    def tests(line):
        (mutant,) = mutants("m/n.py", "\n" * (line - 1) + "y = a + b")
        return where.tests(mutant, 20)

    assert tests(1) == (["tests/test_n.py::b", "tests/test_far.py::a"], 3.0)  # the near one first, the long one not
    assert tests(2) == (["tests/test_n.py::a", "tests/test_n.py::b"], 5.0)  # what a fixture of the file runs
    assert tests(3) == (["tests/m/test_o.py::a"], 7.0)
    assert tests(4) == (["tests/m/test_o.py::c", "tests/m/test_o.py::a"], 8.0)  # on import
    assert tests(5) == ([], 0.0)


@pytest.mark.slow
def test_the_command(tmp_path):
    """All of two mutants are caught, in a copy: the checkout stays as it is."""
    pytest.importorskip("coverage")
    out, before = tmp_path / "figures.json", (ROOT / "mmfast/loss.py").read_bytes()
    words = ["loss.py", "--sample", "2", "--workers", "1", "--out", str(out), "--folder", str(tmp_path / "kept")]
    words += ["--tests", "tests/test_loss.py"]
    done = subprocess.run([sys.executable, "-m", "tests.mutation", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "mmfast/loss.py 100%  2 of 2" in done.stdout, done.stderr
    figures = json.loads(out.read_text())
    assert (figures["tried"], figures["caught"], figures["survivors"]) == (2, 2, [])
    assert (ROOT / "mmfast/loss.py").read_bytes() == before
