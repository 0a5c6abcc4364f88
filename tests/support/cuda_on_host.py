"""The CUDA backend on the host, without a GPU: benchmarks/cuda_on_host.py compiles it."""

import pytest
import torch

from benchmarks.cuda_on_host import compiler, load
from mmfast.ops import around
from mmfast.ops.backends import cuda


@pytest.fixture(scope="module")
def host():
    """cuda.py with the host's extension in place of the device's, and fresh memory full of NaN.

    Gives the extension, what turns the order of the threads, and the extension for a GPU, or None.
    """
    pytest.importorskip("pybind11", reason="pybind11's headers are needed to compile the CUDA kernels for the host")
    if compiler() is None:
        pytest.skip("there is no g++ to compile the CUDA kernels for the host")
    module, library = load()
    around.tell_extension(module)
    before, cuda._cuda = cuda._cuda, module
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    assert torch.ones(1).new_empty(3).isnan().all()
    yield module, library.run_threads_backwards, before
    torch.use_deterministic_algorithms(False)
    cuda._cuda = before
