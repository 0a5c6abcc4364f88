"""torch's own check of the primitive and its backward: schema, fake, autograd registration and AOT dispatch."""

import pytest
import torch

from mmfast import ops


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def primitive(kind):
    """The arguments of torch.ops.mmfast.combine for one kind of call, and needs for its backward."""
    B, C, H, W = 3, 4, 5, 2
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float64 if kind == "float64" else torch.float32
    shapes = {
        "broadcast": [(B, C, 1, 1), (1, C, H, W), (B, 1, H, W), (B, C, H, W)],
        "blocks": [(B, C, H, W), (B, 2, H, W), (B, 1, 1, 1)],
        "no terms": [],
    }.get(kind, [(B, C, H, W)] * 2)
    terms = [randn(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes)]
    starts = [-1, 1, 3] if kind == "blocks" else [-1] * len(terms)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    coefs = randn(B, len(terms), dtype=compute, seed=9)
    noisy = kind != "plain"
    sigma = randn(B, dtype=compute, seed=10) if noisy and kind != "noise only returned" else None
    key = torch.tensor((5, 2)) if noisy else None
    ids = torch.arange(B) + 7 if noisy else None
    wanted = kind in ("return noise", "noise only returned", "no terms")
    if kind == "channels last":
        terms = [x.contiguous(memory_format=torch.channels_last) for x in terms]
    if kind == "needs grad":
        terms, coefs, sigma = [x.requires_grad_() for x in terms], coefs.requires_grad_(), sigma.requires_grad_()
    return terms, starts, coefs, sigma, None, None, None, key, ids, 6, [B, C, H, W], dtype, wanted


PRIMITIVES = ["plain", "noise", "return noise", "noise only returned", "broadcast", "blocks", "no terms", "bfloat16",
              "float64", "channels last", "needs grad"]  # fmt: skip


@pytest.mark.parametrize("kind", PRIMITIVES)
def test_opcheck_combine(traced_backend, kind):
    """torch's own check of schema, fake, autograd registration and AOT dispatch."""
    with ops.backend(traced_backend):
        torch.library.opcheck(torch.ops.mmfast.combine.default, primitive(kind))


# Asked for all the types and layouts; for some, what has other results.
BACKWARD = [(kind, "all") for kind in ("plain", "noise", "broadcast", "blocks", "channels last", "bfloat16", "float64")]
BACKWARD += [(kind, needed) for kind in ("noise", "blocks") for needed in ("terms", "scales")]


@pytest.mark.parametrize(("kind", "needed"), BACKWARD)
def test_opcheck_combine_backward(traced_backend, kind, needed):
    """The same of the backward, asked for all gradients or for some."""
    terms, starts, coefs, sigma, _, _, _, key, ids, stream, shape, dtype, _ = primitive(kind)
    of_terms, of_scales = needed != "scales", needed != "terms"
    needs = [of_terms] * len(terms) + [of_scales, of_scales and sigma is not None]
    grad = randn(*shape, dtype=dtype, seed=11)
    if kind == "channels last":
        grad = grad.contiguous(memory_format=torch.channels_last)
    args = (grad, terms, starts, coefs, key, ids, stream, needs)
    with ops.backend(traced_backend):
        torch.library.opcheck(torch.ops.mmfast.combine_backward.default, args)
