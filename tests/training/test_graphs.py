"""What CUDA graphs are recorded of, seen where torch records them: stand-ins for torch's own, which need a GPU."""

import contextlib

import pytest
import torch
from tiny import tiny

from mmfast.build import build_data, build_model
from mmfast.training import graphs
from mmfast.training.objective import losses


@pytest.mark.parametrize("bf16", [False, True])
def test_the_passes_are_recorded_of_what_training_gives_the_backbone(monkeypatch, bf16):
    config = tiny()
    model, batch = build_model(config), build_data(config).train.__getitems__(range(4))
    given, recorded, cast, autocast = [], [], [], torch.autocast
    watch = model.backbone.register_forward_pre_hook(lambda module, inputs: given.append(inputs))

    @contextlib.contextmanager
    def on_cuda(*how):
        cast.append(how)
        yield
        cast.pop()

    def casts(device_type, dtype=None, enabled=True, cache_enabled=None):
        if device_type != "cuda":
            return autocast(device_type, dtype, enabled, cache_enabled)
        return on_cuda(dtype, enabled, cache_enabled)

    def record(module, inputs):
        recorded.append((module, inputs, *cast))
        return module

    monkeypatch.setattr(torch, "autocast", casts)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    graphs.capture(model, lambda: losses(model, batch, torch.arange(4), config), bf16)
    watch.remove()
    ((module, inputs, how),) = recorded
    assert module is model.backbone and how == (torch.bfloat16, bf16, False)
    (seen,) = given
    assert len(inputs) == len(seen) > 1
    for x, y in zip(inputs, seen, strict=True):
        assert torch.equal(x, y) and x.data_ptr() != y.data_ptr()  # a copy: the graph's own place in memory
        assert x.is_leaf and x.requires_grad == y.requires_grad
    assert not model.backbone._forward_pre_hooks


def test_a_pass_without_the_decoder_is_not_replayed(monkeypatch):
    """torch replaces the module's forward by one that takes tensors alone."""
    config = tiny(train__clean_pass=0.5)
    model, batch = build_model(config), build_data(config).train.__getitems__(range(4))

    def compute():
        return losses(model, batch, torch.arange(4), config)

    wanted, replayed = compute(), []

    def record(module, inputs):
        forward = module.forward
        module.forward = lambda *tensors: replayed.append(tensors) or forward(*tensors)
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    graphs.capture(model, compute, False)
    assert not replayed
    found = compute()
    assert len(replayed) == 1 and all(isinstance(x, torch.Tensor) for x in replayed[0])
    assert found.keys() == wanted.keys() and all(torch.equal(x, wanted[name]) for name, x in found.items())
