"""What the tests of the ops share."""

import pytest
import torch


@pytest.fixture
def fresh():
    """Nothing compiled before, and nothing left behind; any recompilation is an error."""
    from torch._dynamo.utils import counters  # takes seconds to import

    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()
