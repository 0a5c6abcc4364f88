"""The instruction sets that the CPU kernels have here, one at a time."""

import pytest
from flat import cpu


@pytest.fixture(params=[] if cpu.unavailable() else cpu.isas())
def isa(request):
    cpu.set_isa(request.param)
    yield request.param
    cpu.set_isa(None)
