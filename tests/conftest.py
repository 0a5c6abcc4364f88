"""What the tests share: the backends that can run here, quick settings, and nothing else."""

import gc
import os

# Of numpy's and scikit-learn's sums, and of the processes that tests start: threads that wait for each other cost many
# times as much as one. The digits' judge is fitted in 0.1 s by one thread, and in 5 s by two that share a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from mmfast.ops import backends

# Small tensors: a second thread costs more than it brings. A test of threads sets its own number.
torch.set_num_threads(1)

# Derandomised, so that a run of the suite means the same everywhere; deadlines mean nothing on a shared machine.
settings.register_profile("mmfast", deadline=None, max_examples=20, derandomize=True)
settings.register_profile("thorough", settings.get_profile("mmfast"), max_examples=160)  # --hypothesis-profile=thorough
settings.load_profile("mmfast")


def pytest_collection(session):
    """What is imported and collected stays: to look through it for cycles again and again is a third of its time."""
    gc.disable()


def pytest_collection_finish(session):
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def poison():
    """New memory holds NaN (torch fills it in its deterministic mode), so that an output left unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """What the tests decode stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_generate_tests(metafunc):
    """A test that takes `each_backend` runs with every backend of the CPU that can run here, forced.

    With `traced_backend` all but the first are slow: graphs, schemas and derivatives are the same for all, and
    tests/ops/test_ops_autograd.py takes first derivatives by each.
    """
    names = [n for n in backends.MODULES if backends.load(n)[1] is None and "cpu" in backends.load(n)[0].devices]
    if "each_backend" in metafunc.fixturenames:
        metafunc.parametrize("each_backend", names)
    if "traced_backend" in metafunc.fixturenames:
        others = [pytest.param(name, marks=pytest.mark.slow) for name in names[1:]]
        metafunc.parametrize("traced_backend", [names[0], *others])


@pytest.fixture
def threads():
    """Sets the number of torch's threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
