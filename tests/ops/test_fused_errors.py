"""Bad input to step, diffusion_loss and block_mask: an MmfastError of one line that names the argument at fault."""

import math

import pytest
import torch

import mmfast
from mmfast import MmfastError, Schedule, ops
from mmfast.ops import Block

SCHED = Schedule.cosine(20, {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.5)})
X = torch.zeros(2, 3, 4, 4)
HERE = torch.ones(2, 1)


def step(z=X, prediction=X, encodings=None, t=5, s=None, sched=SCHED, **options):
    return ops.step(z, prediction, {} if encodings is None else encodings, t, sched, s, **options)


def loss(prediction=X, z0=X, t=5, sched=SCHED, seed=1, **options):
    return ops.diffusion_loss(prediction, z0, t, sched, seed=seed, **options)


def mask(x=X, ratio=0.5, block_size=2, **options):
    return ops.block_mask(x, ratio, block_size, **options)


def times(*values):
    return torch.tensor(values)


# What is wrong -> the call, and what the message must name.
STEPS = {
    "an unknown target": (lambda: step(target="score"), "target"),
    "no target": (lambda: step(target=None), "target"),
    "a target that is a list": (lambda: step(target=["eps"]), "target"),
    "eta negative": (lambda: step(eta=-0.1), "eta"),
    "eta above one": (lambda: step(eta=1.5), "eta"),
    "eta NaN": (lambda: step(eta=math.nan), "eta"),
    "eta text": (lambda: step(eta="1"), "eta"),
    "eta a tensor": (lambda: step(eta=torch.tensor(1.0)), "eta"),
    "eta None": (lambda: step(eta=None), "eta"),
    "guidance without unconditional": (lambda: step(guidance_scale=2.0), "unconditional"),
    "guidance_scale text": (lambda: step(unconditional=X, guidance_scale="2"), "guidance_scale"),
    "guidance_scale None": (lambda: step(unconditional=X, guidance_scale=None), "guidance_scale"),
    "guidance_scale a tensor": (lambda: step(unconditional=X, guidance_scale=HERE), "guidance_scale"),
    "guidance_scale NaN": (lambda: step(unconditional=X, guidance_scale=math.nan), "guidance_scale"),
    "guidance_scale infinite": (lambda: step(unconditional=X, guidance_scale=math.inf), "guidance_scale"),
    "unconditional of other channels": (lambda: step(unconditional=Block(X[:, :2], 0, 3)), "unconditional"),
    "unconditional of another shape": (lambda: step(unconditional=X[..., :2]), "unconditional"),
    "unconditional of integers": (lambda: step(unconditional=X.long()), "unconditional"),
    "unconditional a number": (lambda: step(unconditional=0.0), "unconditional"),
    "prediction a number": (lambda: step(prediction=0.0), "prediction"),
    "prediction None": (lambda: step(prediction=None), "prediction"),
    "prediction of integers": (lambda: step(prediction=X.long()), "prediction"),
    "prediction of another shape": (lambda: step(prediction=X[..., :2]), "prediction"),
    "prediction past the channels": (lambda: step(prediction=Block(X[:, :2], 2, 3)), "prediction"),
    "prediction a block of another space": (lambda: step(prediction=Block(X, 0, 4)), "prediction"),
    "prediction a block of no tensor": (lambda: step(prediction=Block(None, 0, 3)), "prediction"),
    "prediction a block without channels": (lambda: step(prediction=Block(torch.zeros(2), 0, 3)), "prediction"),
    "z_t a number": (lambda: step(z=0.0), "z_t"),
    "z_t of integers": (lambda: step(z=X.long()), "z_t"),
    "an unknown modality": (lambda: step(encodings={"labels": X}), "'labels'"),
    "an encoding of another shape": (lambda: step(encodings={"label": X[:, :2]}), "encodings"),
    "too few encodings": (lambda: step(encodings=[X]), "encodings"),
    "encodings that are one tensor": (lambda: step(encodings=X), "encodings"),
    "no schedule": (lambda: step(sched=None), "sched"),
    "present of another shape": (lambda: step(encodings={"label": X}, present=torch.ones(2, 2)), "present"),
    "present a list": (lambda: step(encodings={"label": X}, present=[[1], [1]]), "present"),
    "clamp zero": (lambda: step(clamp=0.0), "clamp"),
    "clamp the wrong way around": (lambda: step(clamp=(1.0, -1.0)), "clamp"),
    "clamp NaN": (lambda: step(clamp=math.nan), "clamp"),
    "clamp a tensor": (lambda: step(clamp=torch.ones(2)), "clamp"),
    "seed a float": (lambda: step(seed=1.5), "seed"),
    "stream too large": (lambda: step(stream=1 << 16), "stream"),
    "draw negative": (lambda: step(draw=-1), "draw"),
    "sample_ids for another batch": (lambda: step(sample_ids=torch.arange(3)), "sample_ids"),
}
TIMES = {
    "t zero": (lambda: step(t=0), "t is 0"),
    "t past the end": (lambda: step(t=21), "t is 21"),
    "t a float": (lambda: step(t=5.0), "t is 5.0"),
    "t with a zero": (lambda: step(t=times(0, 5)), "t runs"),
    "t with one too large": (lambda: step(t=times(5, 21)), "t runs"),
    "t with a negative": (lambda: step(t=times(5, -1)), "t runs"),
    "t for another batch": (lambda: step(t=times(1, 2, 3)), "t has 3"),
    "t with a zero, and present": (lambda: step(encodings={"label": X}, t=times(0, 5), present=HERE), "t runs"),
    "t too large, and present": (lambda: step(encodings={"label": X}, t=times(5, 21), present=HERE), "t runs"),
    "t past T for no samples": (lambda: step(X[:0], X[:0], t=torch.tensor(24, dtype=torch.int32)), "t runs"),
    "t zero for no samples": (lambda: ops.posterior_mean(X[:0], X[:0], {}, torch.tensor(0), SCHED), "t runs"),
    "t past T for no samples, forward": (lambda: ops.q_sample(X[:0], {}, torch.tensor(24), SCHED), "t runs"),
    "t past T for no samples, loss": (lambda: loss(X[:0], X[:0], t=torch.tensor(24)), "t runs"),
    "s not before t": (lambda: step(s=5), "s is"),
    "s negative": (lambda: step(s=-1), "s is -1"),
    "s negative, of a mean": (lambda: ops.posterior_mean(X, X, {"label": X}, 5, SCHED, s=-1), "s is -1"),
    "s not before t somewhere": (lambda: step(t=times(5, 6), s=times(4, 6)), "s is"),
    "loss at a negative t": (lambda: loss(t=-1), "t is -1"),
    "loss past the end": (lambda: loss(t=21), "t is 21"),
    "loss with a t too large": (lambda: loss(t=times(5, 21)), "t runs"),
    "loss with a t too large, and sample_weight": (lambda: loss(t=times(5, 21), sample_weight=HERE[:, 0]), "t runs"),
    "loss with a t too large, taken apart": (lambda: loss(t=times(5, 21), fused=False), "t runs"),
    "loss for another batch": (lambda: loss(t=times(1, 2, 3)), "t has 3"),
    "loss at a float": (lambda: loss(t=1.0), "t is 1.0"),
    "q_sample with a t too large, and present": (
        lambda: ops.q_sample(X, {"label": X}, times(5, 21), SCHED, present=HERE), "t runs"),
}  # fmt: skip
LOSSES = {
    "an unknown target": (lambda: loss(target="score"), "target"),
    "a target that is a list": (lambda: loss(target=["eps"]), "target"),
    "an unknown reduction": (lambda: loss(reduction="sum"), "reduction"),
    "no reduction": (lambda: loss(reduction=None), "reduction"),
    "fused a word": (lambda: loss(fused="no"), "fused is a str"),
    "neither noise nor seed": (lambda: loss(seed=None), "noise"),
    "no schedule": (lambda: loss(sched=None), "sched"),
    "prediction of another shape": (lambda: loss(prediction=X[:, :2]), "prediction"),
    "prediction larger": (lambda: loss(prediction=torch.zeros(2, 4, 4, 4)), "prediction"),
    "prediction of integers": (lambda: loss(prediction=X.long()), "prediction"),
    "prediction a number": (lambda: loss(prediction=0.0), "prediction"),
    "prediction a Block": (lambda: loss(prediction=Block(X, 0, 3)), "prediction"),
    "prediction without a batch": (lambda: loss(prediction=X[0, 0, 0, 0], z0=X[0, 0, 0, 0]), "prediction"),
    "z0 that would broadcast": (lambda: loss(z0=X[:, :1]), "z0"),
    "z0 of integers": (lambda: loss(z0=X.long()), "z0"),
    "z0 None": (lambda: loss(z0=None), "z0"),
    "noise that would broadcast": (lambda: loss(noise=X[:1]), "noise"),
    "noise a number": (lambda: loss(noise=0.0), "noise"),
    "noise of integers": (lambda: loss(noise=X.long()), "noise"),
    "min_snr_gamma text": (lambda: loss(min_snr_gamma="5"), "min_snr_gamma"),
    "min_snr_gamma zero": (lambda: loss(min_snr_gamma=0.0), "min_snr_gamma"),
    "min_snr_gamma negative": (lambda: loss(min_snr_gamma=-1.0), "min_snr_gamma"),
    "min_snr_gamma NaN": (lambda: loss(min_snr_gamma=math.nan), "min_snr_gamma"),
    "sample_weight for another batch": (lambda: loss(sample_weight=torch.ones(3)), "sample_weight"),
    "sample_weight of two dimensions": (lambda: loss(sample_weight=HERE), "sample_weight"),
    "sample_weight a number": (lambda: loss(sample_weight=1.0), "sample_weight"),
    "sample_weight complex": (lambda: loss(sample_weight=torch.ones(2, dtype=torch.complex64)), "sample_weight"),
    "seed a bool": (lambda: loss(seed=True), "seed"),
    "stream negative": (lambda: loss(stream=-1), "stream"),
    "draw too large": (lambda: loss(draw=1 << 32), "draw"),
    "sample_ids of int32": (lambda: loss(sample_ids=times(1, 2).int()), "sample_ids"),
}
MASKS = {
    "x of three dimensions": (lambda: mask(X[0]), "x is"),
    "x of integers": (lambda: mask(X.long()), "x is"),
    "x None": (lambda: mask(None), "x is"),
    "ratio negative": (lambda: mask(ratio=-0.1), "ratio"),
    "ratio above one": (lambda: mask(ratio=1.1), "ratio"),
    "ratio NaN": (lambda: mask(ratio=math.nan), "ratio"),
    "ratio with a NaN": (lambda: mask(ratio=torch.tensor([0.5, math.nan])), "ratio"),
    "ratio with a NaN, by chance": (lambda: mask(ratio=torch.tensor([0.5, math.nan]), exact=False), "ratio"),
    "ratio text": (lambda: mask(ratio="0.5"), "ratio"),
    "ratio a bool": (lambda: mask(ratio=True), "ratio"),
    "ratio None": (lambda: mask(ratio=None), "ratio"),
    "ratio for another batch": (lambda: mask(ratio=torch.ones(3)), "ratio"),
    "ratio a matrix": (lambda: mask(ratio=torch.ones(2, 1)), "ratio"),
    "ratio of integers": (lambda: mask(ratio=times(0, 1)), "ratio"),
    "block_size zero": (lambda: mask(block_size=0), "block_size"),
    "block_size negative": (lambda: mask(block_size=(2, -1)), "block_size"),
    "block_size of three": (lambda: mask(block_size=(2, 2, 2)), "block_size"),
    "block_size a float": (lambda: mask(block_size=2.0), "block_size"),
    "block_size of floats": (lambda: mask(block_size=(2.0, 2.0)), "block_size"),
    "block_size None": (lambda: mask(block_size=None), "block_size"),
    "block_size text": (lambda: mask(block_size="22"), "block_size"),
    "seed a float": (lambda: mask(seed=1.5), "seed"),
    "stream a float": (lambda: mask(stream=1.5), "stream"),
    "draw a float": (lambda: mask(draw=0.5), "draw"),
    "sample_ids for another batch": (lambda: mask(sample_ids=torch.arange(3)), "sample_ids"),
}
TABLES = {"step": STEPS, "times": TIMES, "loss": LOSSES, "mask": MASKS}
CASES = [pytest.param(*case, id=f"{table}: {name}") for table, cases in TABLES.items() for name, case in cases.items()]


@pytest.mark.parametrize(("call", "word"), CASES)
def test_bad_input(each_backend, call, word):
    """On every backend: none may look away where another looks."""
    with ops.backend(each_backend), pytest.raises(MmfastError) as caught:
        call()
    message = str(caught.value)
    assert word in message
    assert "\n" not in message
    assert len(message) < 300


def test_tensors_on_two_devices():
    """A kernel takes addresses on trust; `meta` stands for any other device."""
    away = X.to("meta")
    for call in (
        lambda: step(prediction=away),
        lambda: step(z=away, prediction=away),
        lambda: step(encodings={"label": away}),
        lambda: loss(z0=away),
        lambda: loss(prediction=away, z0=away, noise=away),
        lambda: loss(sample_weight=torch.ones(2, device="meta")),
        lambda: mask(sample_ids=torch.arange(2, device="meta")),
    ):
        with pytest.raises(MmfastError, match="meta"):
            call()


def test_an_error_of_a_backend_that_is_none_of_the_times_is_not_hidden(monkeypatch):
    def fail(*args):
        raise IndexError("of its own")

    monkeypatch.setattr(ops.reference, "combine", fail)
    with ops.backend("reference"), pytest.raises(IndexError, match="of its own"):
        ops.posterior_mean(X, X, {"label": X}, times(5, 6), SCHED)
