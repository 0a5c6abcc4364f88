"""From the trainer and the sampler to the kernel an op takes one call into C++, over few frames of Python."""

import sys

import optional
import pytest
import torch
from flat import cpu

from mmfast import config as configs
from mmfast.build import build_data, build_model
from mmfast.sample import sample
from mmfast.training.objective import losses

if cpu.unavailable():
    pytest.skip(cpu.unavailable(), allow_module_level=True)
pytest.importorskip("sklearn")


def walks(function):
    """For each call of the extension within function(), the Python frames that lead to it, the last first."""
    found = []

    def profile(frame, event, called):
        if event == "c_call" and getattr(called, "__self__", None) is cpu._cpu and called.__name__ != "random_words":
            names = []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            found.append((called.__name__, names))

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(before)
    return found


@pytest.fixture(scope="module")
def run():
    config = configs.load("digits")
    return config, build_data(config), build_model(config)


@optional.short_way
def test_the_losses_are_near_the_kernel(run):
    config, data, model = run
    batch, numbers = data.train.__getitems__(list(range(8))), torch.arange(8)
    losses(model, batch, numbers, config)  # the first time makes the tables
    found = walks(lambda: losses(model, batch, numbers, config))
    assert [name for name, _ in found] == ["look_combine", "look_squared_error"], "a call and no second one"
    assert all(names.index("losses") + 1 <= 4 for _, names in found), found


def test_a_step_of_the_sampler_is_near_the_kernel(run):
    model = run[2]
    found = [names for name, names in walks(lambda: sample(model, 2, steps=3)) if name == "look_step"]
    assert len(found) == 3 and all(names.index("_step") + 1 <= 4 for names in found), found
