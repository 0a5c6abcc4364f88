"""Bad input to the ops: each call raises a ValueError or TypeError of one line that names the argument at fault."""

import inspect

import pytest
import torch

import mmfast
from mmfast import Schedule, ops, process
from mmfast.ops import Block

SCHED = Schedule.cosine(20, {"label": mmfast.bridge(2.0), "mask": mmfast.carried(0.5)})
X = torch.zeros(2, 3, 4, 4)
ONE = torch.ones(2, 1)
TWO = torch.ones(2, 2)


def combine(terms=(X,), coefs=ONE, *args, **options):
    return ops.combine(list(terms), coefs, *args, **options)


def q(z0=X, encodings=None, t=5, sched=SCHED, **options):
    return ops.q_sample(z0, {} if encodings is None else encodings, t, sched, **options)


def mean(z=X, eps=X, encodings=None, t=5, s=None, **options):
    return ops.posterior_mean(z, eps, {} if encodings is None else encodings, t, SCHED, s, **options)


def step(z=X, eps=X, encodings=None, t=5, s=None, clamp=None, **options):
    return ops.posterior_sample(z, eps, {} if encodings is None else encodings, t, SCHED, s, clamp, **options)


def times(*values):
    return torch.tensor(values)


# What is wrong -> the call, and what the message must name.
SHAPES = {
    "terms that do not broadcast": (lambda: combine([X, torch.zeros(2, 3, 4, 5)], TWO), "terms"),
    "a term that is no tensor": (lambda: combine([X, 1.0], TWO), "terms[1]"),
    "terms of an integer type": (lambda: combine([X, X.long()], TWO), "terms[1]"),
    "a bool term": (lambda: combine([X.bool()]), "terms[0]"),
    "a complex term": (lambda: combine([X.to(torch.complex64)]), "terms[0]"),
    "terms that are one tensor": (lambda: ops.combine(X, torch.ones(3, 2)), "terms"),
    "no terms": (lambda: ops.combine([], torch.ones(1, 0)), "terms"),
    "z0 of an integer type": (lambda: q(X.int()), "z0"),
    "z0 that is no tensor": (lambda: q([0.0]), "z0"),
    "an encoding larger than z0": (lambda: q(X[:1], {"label": X}), "encodings"),
    "an encoding of another shape": (lambda: q(X, {"label": torch.zeros(2, 3, 5, 4)}), "encodings"),
    "an encoding of more dimensions": (lambda: q(X, {"label": X[None]}), "encodings"),
    "an encoding of an integer type": (lambda: q(X, {"label": X.long()}), "encodings[0]"),
    "an encoding that is None": (lambda: q(X, {"label": X, "mask": None}), "encodings[1]"),
    "encodings that are one tensor": (lambda: ops.q_sample(X, X, 5, SCHED), "encodings"),
    "encodings that are None": (lambda: ops.q_sample(X, None, 5, SCHED), "encodings"),
    "too few encodings": (lambda: q(X, [X]), "encodings"),
    "too many encodings": (lambda: q(X, [X, X, X]), "encodings"),
    "an unknown modality": (lambda: q(X, {"labels": X}), "'labels'"),
    "an unknown modality in a step": (lambda: step(encodings={"depth": X}), "'depth'"),
    "eps of another shape": (lambda: mean(X, X[..., :2]), "eps"),
    "eps of an integer type": (lambda: mean(X, X.long()), "eps"),
    "z_t that is no tensor": (lambda: step(0.5), "z_t"),
    "multimodal_mean of nothing": (lambda: ops.multimodal_mean({}, TWO), "encodings"),
    "multimodal_mean of integers": (lambda: ops.multimodal_mean([X.long()], ONE), "encodings[0]"),
    "multimodal_mean of other shapes": (lambda: ops.multimodal_mean([X, X[:, :2]], TWO), "encodings"),
    "weights of another shape": (lambda: ops.multimodal_mean([X], TWO), "weights"),
    "weights that are a list": (lambda: ops.multimodal_mean([X], [1.0]), "weights"),
    "noise of another shape": (lambda: q(noise=X[:1]), "noise"),
    "noise of an integer type": (lambda: q(noise=X.long()), "noise"),
    "noise that is no tensor": (lambda: q(noise=1.0), "noise"),
}
SCALES = {
    "coefs for other terms": (lambda: combine([X], TWO), "coefs"),
    "coefs for another batch": (lambda: combine([X], torch.ones(3, 1)), "coefs"),
    "coefs of one dimension": (lambda: combine([X], torch.ones(2)), "coefs"),
    "coefs of three dimensions": (lambda: combine([X], torch.ones(2, 1, 1)), "coefs"),
    "coefs that are a list": (lambda: combine([X], [[1.0], [1.0]]), "coefs"),
    "coefs that are complex": (lambda: combine([X], ONE.to(torch.complex64)), "coefs"),
    "sigma for another batch": (lambda: combine([X], ONE, torch.ones(3)), "sigma"),
    "sigma of two dimensions": (lambda: combine([X], ONE, torch.ones(2, 1)), "sigma"),
    "sigma of none": (lambda: combine([X], ONE, torch.tensor(1.0)), "sigma"),
    "sigma that is a number": (lambda: combine([X], ONE, 1.0), "sigma"),
}
BLOCKS = {
    "a block past the end": (lambda: combine([X, Block(X[:, :2], 2, 3)], TWO), "terms[1]"),
    "a block before the start": (lambda: combine([X, Block(X[:, :2], -1, 3)], TWO), "terms[1]"),
    "a block of another space": (lambda: combine([X, Block(X[:, :2], 0, 4)], TWO), "terms"),
    "a block without channels": (lambda: combine([Block(torch.zeros(2), 0, 1)]), "terms[0]"),
    "a block of another rank": (lambda: combine([X, Block(torch.zeros(3, 1, 4), 0, 4)], TWO), "terms"),
    "a block of another size": (lambda: combine([X, Block(torch.zeros(2, 1, 4, 3), 0, 3)], TWO), "terms"),
    "a block of integers": (lambda: combine([Block(X.long(), 0, 3)]), "terms[0]"),
    "a block of no tensor": (lambda: combine([Block(None, 0, 3)]), "terms[0]"),
    "a block with a fractional start": (lambda: combine([Block(X[:, :1], 0.5, 3)]), "terms[0]"),
    "an encoding's block past the end": (lambda: q(X, {"mask": Block(X[:, :1], 3, 3)}), "encodings[0]"),
    "z0's block smaller than the space": (lambda: q(Block(X, 0, 2)), "z0"),
}
TIMES = {
    "t negative": (lambda: q(t=-1), "t is -1"),
    "t too large": (lambda: q(t=21), "t is 21"),
    "t a float": (lambda: q(t=5.0), "t is 5.0"),
    "t a bool": (lambda: q(t=True), "t is True"),
    "t None": (lambda: q(t=None), "t is None"),
    "t a list": (lambda: q(t=[1, 2]), "t is [1, 2]"),
    "t a float tensor": (lambda: q(t=torch.tensor([1.0, 2.0])), "t is"),
    "t a bool tensor": (lambda: q(t=torch.tensor([True, False])), "t is"),
    "t a uint8 tensor": (lambda: q(t=torch.tensor([1, 2], dtype=torch.uint8)), "t is"),
    "t a tensor with a negative": (lambda: q(t=times(3, -1)), "t runs"),
    "t a tensor with one too large": (lambda: q(t=times(3, 21)), "t runs"),
    "t for another batch": (lambda: q(t=times(1, 2, 3)), "t has 3"),
    "t a matrix": (lambda: q(t=torch.ones(2, 1, dtype=torch.int64)), "t is"),
    "a step from 0": (lambda: step(t=0), "t is 0"),
    "a mean from 0": (lambda: mean(t=times(0, 1)), "t runs"),
    "a step from T + 1": (lambda: step(t=21), "t is 21"),
    "a step from a float": (lambda: step(t=2.5), "t is 2.5"),
    "a step for another batch": (lambda: step(t=times(1, 2, 3)), "t has 3"),
    "s negative": (lambda: step(s=-1), "s is -1"),
    "s equal to t": (lambda: step(s=5), "s is"),
    "s after t": (lambda: mean(t=times(5, 6), s=times(4, 7)), "s is"),
    "s at T": (lambda: mean(t=20, s=20), "s is 20"),
    "s a float": (lambda: step(s=1.0), "s is 1.0"),
    "s a float tensor": (lambda: step(s=torch.tensor([1.0, 1.0])), "s is"),
    "s for another batch": (lambda: step(s=times(1, 2, 3)), "s has 3"),
    "s after an int t": (lambda: step(t=3, s=times(1, 3)), "s is"),
    "marginal outside": (lambda: process.marginal(SCHED, 21), "t is 21"),
    "jump to itself": (lambda: process.jump(SCHED, times(3), times(3)), "s is"),
    "no schedule": (lambda: q(sched=None), "sched"),
}
IDENTITIES = {
    "sample_ids for another batch": (lambda: q(sample_ids=torch.arange(3)), "sample_ids"),
    "sample_ids of int32": (
        lambda: q(sample_ids=torch.arange(2, dtype=torch.int32)),
        "sample_ids is torch.int32 [2]; it should be an int64 tensor [2]",
    ),
    "sample_ids of floats": (lambda: combine([X], ONE, torch.ones(2), sample_ids=torch.ones(2)), "sample_ids"),
    "sample_ids a list": (lambda: ops.randn((2, 3), sample_ids=[0, 1]), "sample_ids"),
    "sample_ids a matrix": (lambda: ops.randn((2, 3), sample_ids=torch.zeros(2, 1, dtype=torch.int64)), "sample_ids"),
    "seed a float": (lambda: q(seed=1.5), "seed"),
    "seed a bool": (lambda: q(seed=True), "seed"),
    "seed text": (lambda: ops.randn((2, 3), seed="1"), "seed"),
    "seed too large": (lambda: ops.randn((2, 3), seed=1 << 64), "seed"),
    "sizes beyond counting": (lambda: ops.randn((2**40, 2**40), seed=1), "fewer than 2^59"),
    "a size beyond counting beside none": (lambda: ops.randn((0, 2**70), seed=1), "shape is (0, "),
    "words beyond counting": (lambda: ops.random_words((2**70, 0), seed=1), "sizes of 0 aside"),
    "seed too small": (lambda: ops.randn((2, 3), seed=-(1 << 63) - 1), "seed"),
    "seed a float tensor": (lambda: step(seed=torch.tensor(1.0)), "seed"),
    "seed of two": (lambda: step(seed=torch.tensor([1, 2])), "seed"),
    "stream negative": (lambda: ops.randn((2, 3), stream=-1), "stream"),
    "stream too large": (lambda: ops.randn((2, 3), stream=1 << 16), "stream"),
    "stream a float": (lambda: ops.randn((2, 3), seed=1, stream=1.5), "stream"),
    "stream text": (lambda: ops.randn((2, 3), seed=1, stream="1"), "stream"),
    "draw negative": (lambda: ops.randn((2, 3), draw=-1), "draw"),
    "draw too large": (lambda: ops.randn((2, 3), draw=1 << 32), "draw"),
    "draw a float": (lambda: ops.randn((2, 3), seed=1, draw=1.5), "draw"),
    "draw of two": (lambda: ops.randn((2, 3), seed=1, draw=torch.tensor([1, 2])), "draw"),
    "draw a float tensor": (lambda: ops.randn((2, 3), seed=1, draw=torch.tensor(1.5)), "draw"),
    "randn with a negative size": (lambda: ops.randn((2, -3)), "shape"),
    "randn of a number": (lambda: ops.randn(5), "shape"),
    "randn with a fractional size": (lambda: ops.randn((2, 1.5), seed=1), "shape"),
    "randn of integers": (lambda: ops.randn((2, 3), seed=1, dtype=torch.int64), "dtype"),
    "randn of complex numbers": (lambda: ops.randn((2, 3), seed=1, dtype=torch.complex64), "dtype"),
}
OTHERS = {
    "present for another batch": (lambda: q(encodings={"label": X}, present=torch.ones(3, 1)), "present"),
    "present for other modalities": (lambda: q(encodings={"label": X}, present=TWO), "present"),
    "present of one dimension": (lambda: q(encodings={"label": X}, present=torch.ones(2)), "present"),
    "present a list": (lambda: q(encodings={"label": X}, present=[[1], [1]]), "present"),
    "present elsewhere": (lambda: q(encodings={"label": X}, present=torch.ones(2, 1, device="meta")), "present"),
    "present elsewhere in a step": (
        lambda: step(encodings={"label": X}, present=torch.ones(2, 1, device="meta")),
        "present",
    ),
    "present elsewhere at times of their own": (
        lambda: q(
            ops.Block(X, 0, 6),
            {"label": ops.Block(X, 3, 6)},
            torch.tensor([[3, 4], [5, 6]]),
            present=torch.ones(2, 1, device="meta"),
        ),
        "present",
    ),
    "present in a step": (lambda: step(encodings={"label": X}, present=TWO), "present"),
    "present in a mean": (lambda: mean(encodings={"label": X}, present=torch.ones(5, 1)), "present"),
    "clamp zero": (lambda: step(clamp=0.0), "clamp"),
    "clamp negative": (lambda: step(clamp=-1.0), "clamp"),
    "clamp NaN": (lambda: step(clamp=float("nan")), "clamp"),
    "clamp the wrong way around": (lambda: step(clamp=(1.0, -1.0)), "clamp"),
    "clamp of three": (lambda: step(clamp=(-1.0, 0.0, 1.0)), "clamp"),
    "clamp text": (lambda: step(clamp="1"), "clamp"),
}
TABLES = {
    "shapes": SHAPES,
    "scales": SCALES,
    "blocks": BLOCKS,
    "times": TIMES,
    "identities": IDENTITIES,
    "others": OTHERS,
}
CASES = [pytest.param(*case, id=f"{table}: {name}") for table, cases in TABLES.items() for name, case in cases.items()]


@pytest.mark.parametrize(("call", "word"), CASES)
def test_bad_input(call, word):
    """A message of one line, with the argument's name in it, from a ValueError or a TypeError."""
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    message = str(caught.value)
    assert word in message
    assert "\n" not in message
    assert len(message) < 300


def test_an_unknown_name_gets_the_nearest_as_a_hint():
    with pytest.raises(mmfast.MmfastError, match="did you mean 'label'"):
        q(encodings={"lable": X})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_are_not_hidden(each_backend, value):
    """NaN and infinity in a term that is read come out, where they were."""
    x = torch.ones(2, 3, 5)
    x[1, 2, 3] = value
    with ops.backend(each_backend):
        out = ops.combine([x, torch.ones(2, 3, 5)], TWO)
        z, _ = ops.q_sample(x, {}, 3, SCHED, seed=1)
    assert torch.isfinite(out).sum() == torch.isfinite(z).sum() == 29
    assert not torch.isfinite(out[1, 2, 3])


def test_tensors_on_two_devices_are_refused_before_a_kernel_sees_them():
    """A kernel takes addresses on trust; `meta` stands for any other device."""
    sched, away = mmfast.Schedule.cosine(50), torch.zeros(2, 3, device="meta")
    for call in (
        lambda: ops.q_sample(away, {}, 5, sched, seed=1),
        lambda: ops.q_sample(torch.zeros(2, 3), {}, 5, sched, noise=away),
        lambda: ops.combine([away], torch.ones(2, 1)),
        lambda: ops.combine([torch.zeros(2, 3)], torch.ones(2, 1), torch.ones(2, device="meta"), seed=1),
    ):
        with pytest.raises(mmfast.MmfastError, match="meta"):
            call()


def test_every_public_op_says_that_it_raises():
    functions = [getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]
    assert len(functions) > 10
    assert [x.__name__ for x in functions if "Raises" not in (inspect.getdoc(x) or "")] == []
