"""Which tests come by a line, and how long each takes: measured once a test file, and kept while the code is the same.

The digest is of the package, the conftest and the test file itself; after a change of tests/support use --fresh.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mutation.children import OPTIONS, Child
from tests.mutation.mutants import Mutant

IMPORT = ""  # the context of what runs while a module is imported


class Watch:
    """A plugin of pytest that tells coverage which test runs, and keeps the seconds of those that pass.

    What a fixture of a wider scope runs, its first test runs for all of the file: so it counts for the file.
    """

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds, self.failed, self.test = coverage, {}, set(), IMPORT
        self.started = 0.0

    def _hook_protocol(self, item: Any) -> Iterator[None]:
        self.test, self.started = item.nodeid, _work()
        self.coverage.switch_context(self.test)
        yield
        self.seconds[self.test] = _work() - self.started

    def _hook_fixture(self, fixturedef: Any) -> Iterator[None]:
        wide = fixturedef.scope != "function"
        if wide:
            self.coverage.switch_context(self.test.split("::")[0])
        yield
        if wide:
            self.coverage.switch_context(self.test)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome != "passed":
            self.failed.add(report.nodeid)


def _work() -> float:
    """Seconds of CPU time of this process and of those it has waited for: how busy the machine is plays no part."""
    return sum(os.times()[:4])


@dataclass
class File:
    """A test file: seconds by test, and the tests by module and line, as indices of them; -1 stands for all."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    imported: dict[str, list[int]] = field(default_factory=dict)


def _measure(tree: Path, file: str, out: Path) -> int:
    """In a child: run a test file under coverage and write what was found."""
    import coverage
    import pytest

    cov = coverage.Coverage(data_file=None, config_file=False, include=[f"{tree}/mmfast/*"])
    watch = Watch(cov)
    Watch.pytest_runtest_protocol = pytest.hookimpl(hookwrapper=True)(Watch._hook_protocol)  # type: ignore[attr-defined]
    Watch.pytest_fixture_setup = pytest.hookimpl(hookwrapper=True)(Watch._hook_fixture)  # type: ignore[attr-defined]
    cov.start()
    pytest.main([file, *OPTIONS[1:], f"--basetemp={tree}/.tmp"], plugins=[watch])
    cov.stop()
    data = cov.get_data()
    tests = [test for test in watch.seconds if test not in watch.failed]
    index = {test: k for k, test in enumerate(tests)} | {file: -1}
    lines: dict[str, dict[int, list[int]]] = {}
    imported: dict[str, list[int]] = {}
    for path in data.measured_files():
        module = str(Path(path).relative_to(tree))
        for line, contexts in data.contexts_by_lineno(path).items():
            found = sorted(index[c] for c in contexts if c in index)
            if found:
                lines.setdefault(module, {})[line] = found
            if IMPORT in contexts:
                imported.setdefault(module, []).append(line)
    out.write_text(
        json.dumps({"seconds": {t: round(watch.seconds[t], 3) for t in tests}, "lines": lines, "imported": imported})
    )
    return 0


class Map:
    """The map of all test files, kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, File] = {}

    def measure(self, tree: Path, tests: list[str]) -> None:
        shared = [*(tree / "mmfast").rglob("*.py"), *(tree / "tests").rglob("conftest.py")]
        package = digest(tree, sorted(shared))
        self.folder.mkdir(parents=True, exist_ok=True)
        for test in tests:
            kept = self.folder / f"{package[:16]}-{digest(tree, [tree / test])[:16]}.json"
            if not kept.exists():
                print(f"measuring {test}", flush=True)
                Child(tree, functools.partial(_measure, tree, test, kept), 600).wait()
            if not kept.exists():
                print(f"{test} could not be measured and is left out; see {tree}/.log", flush=True)
                continue
            found = json.loads(kept.read_text())
            lines = {m: {int(line): ids for line, ids in rows.items()} for m, rows in found["lines"].items()}
            self.files[test] = File(found["seconds"], lines, found["imported"])

    def tests(self, mutant: Mutant, most: float) -> tuple[list[str], float]:
        """The tests that come by a mutant, nearest file first, and their seconds; of those that take `most` in all.

        What runs while a module is imported may be seen by all tests.
        """
        first, last = mutant.lines
        by_file: list[tuple[int, float, list[str]]] = []
        for name, file in self.files.items():
            rows = file.lines.get(mutant.module, {})
            ids = {k for line, found in rows.items() if first <= line <= last for k in found}
            tests = list(file.seconds)
            # On import: any test of the file may see it, and a short one does as well as the nearest.
            on_import = not ids and any(first <= line <= last for line in file.imported.get(mutant.module, []))
            here = tests if on_import or -1 in ids else [tests[k] for k in sorted(ids)]
            if here:
                distance = 0 if on_import else _distance(mutant.module, name)
                by_file.append((distance, sum(file.seconds[t] for t in here), here))
        chosen: list[str] = []
        seconds = 0.0
        for _, _, here in sorted(by_file):
            for test in here:
                taken = self.files[test.split("::")[0]].seconds[test]
                if seconds + taken <= most:
                    chosen.append(test)
                    seconds += taken
        return chosen, seconds


def _distance(module: str, test: str) -> int:
    """0 for a test file that carries the module's name, 1 for one in a folder of the same name, 2 for others."""
    one, other = Path(module), Path(test)
    stem = one.parent.name if one.stem == "__init__" else one.stem
    if stem in other.stem:
        return 0
    return 1 if one.parent.name == other.parent.name else 2


def digest(root: Path, files: list[Path]) -> str:
    """Of the files' names and contents."""
    found = hashlib.sha256()
    for file in files:
        found.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return found.hexdigest()
