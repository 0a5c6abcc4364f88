"""A sum in which nothing is left is +0, on every backend, as in reference.py."""

import pytest
import torch
from flat import load

ONE, NONE = torch.ones(1), torch.zeros(1, 1)


def test_a_step_without_terms_of_its_own_is_positive_zero(each_backend):
    """The term goes into x0 alone, and x0 nowhere."""
    step = load(each_backend)[0].step
    coefs = torch.zeros(1, 2)
    out, x0 = step([ONE[:, None]], [-1], ONE[:, None], coefs, None, None, -9.0, 9.0, -1, 1, None, None, 0, [1, 1],
                   torch.float32, True)  # fmt: skip
    assert x0.item() == 1 and out.item() == 0 and not out.signbit().any()


@pytest.mark.parametrize("sigma", [None, torch.zeros(1)])
def test_a_combination_without_terms_is_positive_zero(each_backend, sigma):
    combine = load(each_backend)[0].combine
    out, _ = combine([ONE[:, None]], [-1], NONE, sigma, None, (1, 2), None, 0, [1, 1], torch.float32, False)
    assert out.item() == 0 and not out.signbit().any()
