"""The registry of step rules: one of the user's own is a name like the others, in a config and in a call."""

import pytest
import torch
from tiny import tiny

from mmfast import MmfastError
from mmfast.build import build_model
from mmfast.generate import generate
from mmfast.samplers import SAMPLERS, ddim


def test_a_rule_of_the_users_own(monkeypatch):
    seen = []

    def mine(alpha_bar, t, s, last, eta):
        seen.append((t, s, last))
        return ddim(alpha_bar, t, s, last, eta)

    with pytest.raises(MmfastError, match=r"sample\.sampler is 'mine'"):
        tiny(sample__sampler="mine")
    monkeypatch.setitem(SAMPLERS, "mine", mine)
    config = tiny(sample__sampler="mine")
    drawn = generate(build_model(config), config, 2)
    assert seen == [(1000, 500, None), (500, 0, 1000)]
    usual = tiny(sample__sampler="ddim")
    torch.testing.assert_close(drawn["image"], generate(build_model(usual), usual, 2)["image"], rtol=0, atol=0)
