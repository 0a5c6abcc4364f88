"""How the CUDA kernels are launched changes nothing, and they touch nothing else: on the host, as test_cuda_kernel.py.

The last tests compare a GPU's bits with the host's, and are skipped where there is none.
"""

import ctypes
import math

import pytest
import torch
from cuda_problems import DTYPES, KEY, absolute, check, exactly, identical, real, rounding
from flat import Guards, cuda, reference

from mmfast.ops import reference as _reference
from mmfast.ops.call import Call, Noise, Tables

pytest_plugins = ["cuda_on_host"]
pytestmark = pytest.mark.usefixtures("host")


def big_call(dtype, batch=3, width=68, device="cpu"):
    """More than one item a sample, and more than one block; with whole vectors or without (an odd width)."""
    shape, g = [batch, 6, 61, width], torch.Generator().manual_seed(0)
    sizes = [shape, [batch, 6, 1, 1], [batch, 2, 61, width], [1, 6, 61, width], shape, [batch, 1, 1, 1]]
    terms = [torch.randn(s, generator=g).to(dtype) for s in sizes]
    coefs, sigma = torch.randn(batch, 6, generator=g).to(real(dtype)), torch.rand(batch, generator=g).to(real(dtype))
    terms, coefs, sigma = [t.to(device) for t in terms], coefs.to(device), sigma.to(device)
    return terms, [-1, -1, 3, -1, -1, -1], coefs, sigma, None, KEY.to(device), None, 1, shape, dtype


class Seen(ctypes.Structure):
    """A tensor as DLPack hands it over: as far as its device."""

    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class Exchange(ctypes.Structure):
    """DLPack's table of functions: csrc/python.h."""

    _fields_ = [("version", ctypes.c_uint64), *[(f"pointer_{i}", ctypes.c_void_p) for i in range(4)],
                ("from_object", ctypes.c_void_p), ("current_stream", ctypes.c_void_p)]  # fmt: skip


@pytest.fixture
def elsewhere(host):
    """A list: its tensors are seen on a second device."""
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        pytest.skip("this torch has no exchange API to stand before")
    address = ctypes.pythonapi.PyCapsule_GetPointer
    address.restype, address.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    function = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(Seen))
    name, tensors = b"dlpack_exchange_api", []
    api = Exchange.from_buffer_copy(Exchange.from_address(address(capsule, name)))
    theirs = function(api.from_object)

    def from_object(tensor, to):
        status = theirs(tensor, to)
        to.contents.id += any(tensor == id(x) for x in tensors)
        return status

    ours = function(from_object)
    api.from_object = ctypes.cast(ours, ctypes.c_void_p)
    api.pointer_0 = None
    assert host[0].use_exchange_api(new(ctypes.addressof(api), name, None))
    yield tensors
    host[0].use_exchange_api(capsule)


@pytest.mark.parametrize("exact", [True, False])
def test_a_mask_of_tensors_on_two_devices(host, elsewhere, exact):
    """A kernel would read the other device's memory: it is refused, and looked at by the checks."""
    x, hidden, ids = torch.ones(2, 1, 4, 4), torch.tensor([1, 2]), torch.tensor([3, 4])
    call = x, hidden, Noise((1, 0), ids), (2, 2), exact
    assert type(host[0].look_block_mask(*call)) is tuple
    for away in (hidden, ids):
        elsewhere[:] = [away]
        assert host[0].look_block_mask(*call) == 0
        with pytest.raises(ValueError, match="another device"):
            host[0].block_mask(*call)
    elsewhere[:] = [x, hidden, ids]
    assert type(host[0].look_block_mask(*call)) is tuple


def everything(dtype, width, device="cpu"):
    terms, starts, coefs, sigma, rows, key, ids, stream, shape, _ = call = big_call(dtype, width=width, device=device)
    grad = terms[0] * 2
    more = torch.cat([coefs, coefs[:, :1]], 1)
    return [
        *cuda.combine(*call, True),
        *cuda.step(
            terms, starts, coefs, more, sigma, rows, -1.0, 1.0, 2, 3, key, ids, stream, shape, dtype, True
        ),
        *cuda.squared_error(*call[:4], sigma, *call[4:], 0.1, True),
        *cuda.combine_backward(grad, terms, starts, coefs, sigma, key, ids, stream, [True] * 8),
        cuda.block_ranks(key, ids, stream, 3, 999, torch.device(device)),
        *cuda.block_mask(terms[0], torch.full([3], 2**62, device=device), key, ids, stream, (4, 5)),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 67])
def test_blocks_grids_and_the_order_of_threads_change_nothing(host, dtype, width):
    module, backwards, _ = host
    want = everything(dtype, width)
    try:
        for threads, blocks, reverse in [(256, 1, 0), (64, 5, 1), (32, 1000, 0)]:
            module.set_limits(threads, blocks)
            backwards(reverse)
            for a, b in zip(everything(dtype, width), want, strict=True):
                assert identical(a, b)
    finally:
        module.set_limits(256, 2**31 - 1)
        backwards(0)


def test_small_samples_share_blocks_in_any_way(host):
    module, backwards, _ = host
    g = torch.Generator().manual_seed(0)
    for elements in (1, 5, 24, 100):
        terms = [torch.randn(70, elements, generator=g) for _ in range(5)]
        args = terms, [-1] * 5, torch.randn(1, 5, generator=g), torch.ones(1), torch.ones(1), None, KEY, None, 0
        args += ([70, elements], torch.float32, 1.0, True)
        want = cuda.squared_error(*args)
        for threads, blocks, reverse in [(32, 3, 0), (64, 1, 1), (128, 2, 0)]:
            module.set_limits(threads, blocks)
            backwards(reverse)
            assert all(identical(a, b) for a, b in zip(cuda.squared_error(*args), want, strict=True))
        module.set_limits(256, 2**31 - 1)
        backwards(0)


def test_samples_do_not_depend_on_each_other():
    terms, starts, coefs, sigma, rows, key, _, stream, shape, dtype = call = big_call(torch.float32)
    both = [*cuda.combine(*call, True), *cuda.squared_error(*call[:4], sigma, *call[4:], 0.1, True)]
    for b in range(shape[0]):
        one = [t if t.size(0) == 1 else t[b : b + 1] for t in terms]
        at = slice(b, b + 1)
        args = one, starts, coefs[at], sigma[at], rows, key, torch.tensor([b]), stream, [1, *shape[1:]], dtype
        alone = [*cuda.combine(*args, True), *cuda.squared_error(*args[:4], sigma[at], *args[4:], 0.1, True)]
        assert all(torch.equal(a[0], c[b]) for a, c in zip(alone, both, strict=True))


def test_many_terms():
    g = torch.Generator().manual_seed(0)
    for count in (9, 32, 33):  # 33 goes through the reference
        terms, coefs = [torch.randn(2, 24, generator=g) for _ in range(count)], torch.randn(2, count, generator=g)
        p = dict(terms=terms, starts=[-1] * count, coefs=coefs, sigma=None, rows=None, key=None, sample_ids=None,
                 stream=0, shape=[2, 24], dtype=torch.float32)  # fmt: skip
        want = reference.combine(**exactly(p), return_noise=False)[0]
        check(cuda.combine(**p, return_noise=False)[0], want, rounding(p, *absolute(p), count + 1), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_vectors_that_only_seem_whole(dtype):
    """A block that begins inside a vector, and rows that are not aligned, while all else would let vectors be whole."""
    g = torch.Generator().manual_seed(0)
    block = torch.randn(2, 8, 3, generator=g).to(dtype), 1, [2, 16, 3]
    rows = torch.randn(2, 16, 9, generator=g).to(dtype)[:, :, :8], -1, [2, 16, 8]
    for term, start, shape in (block, rows):
        whole = torch.randn(shape, generator=g).to(dtype)
        p = dict(terms=[whole, term], starts=[-1, start], coefs=torch.ones(1, 2, dtype=real(dtype)), sigma=None,
                 rows=None, key=None, sample_ids=None, stream=0, shape=shape, dtype=dtype)  # fmt: skip
        want = reference.combine(**exactly(p), return_noise=False)[0]
        check(cuda.combine(**p, return_noise=False)[0], want, rounding(p, *absolute(p), 3), dtype)


# Memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_read_or_written_outside(dtype, monkeypatch):
    """Outputs and the term in the middle of buffers, at every alignment and many lengths; NaN around what is read."""
    guard, one = 40, torch.ones(1, 1, dtype=real(dtype))
    tables, loss = (one, one.expand(1, 2).contiguous(), one[:, 0]), one[:, 0]
    for n in [*range(1, 10), 15, 16, 17, 24, 31, 33, 64]:
        for offset in range(0, 9, 1 + n // 20):
            buffer = torch.full([guard * 2 + 6 * n], math.nan, dtype=dtype)
            x = buffer[guard - offset : guard - offset + 6 * n].view(2, 3, n).fill_(0.5)
            result = KEY, None, 0, [2, 3, n], dtype
            with Guards(monkeypatch, offset):
                found = [*cuda.combine([x], [-1], one, loss, None, *result, True)]
                found += cuda.step([x], [-1], *tables, None, -1.0, 1.0, -1, 0, *result, True)
                found += cuda.squared_error([x], [-1], one, loss, loss, None, *result, 1.0, True)
                found += cuda.block_mask(x[:, :, None], torch.full([2], 2**62), KEY, None, 0, (1, 2))
                assert not any(y.isnan().any() for y in found)


@pytest.mark.parametrize("blocks", [1, 3, 4, 5, 64, 777])
def test_so_many_blocks_are_hidden(host, blocks):
    """Exactly as many of each sample as asked for, none to all, and those that a sort of the ranks says."""
    module, backwards, _ = host
    counts = torch.tensor([0, 1, blocks // 2, blocks - 1, blocks])
    noise, x = Noise((7, 2), torch.tensor([5, 0, 2**40, 9, 1]), 3), torch.ones(5, 1, 1, blocks)
    for hidden in (counts, blocks // 3):
        want = _reference.block_mask(x, hidden, noise, (1, 1), True)[1]
        for threads, reverse in ((256, 0), (32, 1), (1, 0)):
            module.set_limits(threads, 3)
            backwards(reverse)
            mask = cuda._backend.block_mask(x, hidden, noise, (1, 1), True)[1]
            assert torch.equal(mask, want)
    module.set_limits(256, 2**31 - 1)
    backwards(0)
    assert (1 - _reference.block_mask(x, counts, noise, (1, 1), True)[1]).sum((1, 2, 3)).tolist() == counts.tolist()


def test_a_call_that_cannot_be_is_an_error():
    one = torch.ones(1, 33)
    call = Call([one[0]] * 33, Tables(one), None, None, [33], torch.float32)
    with pytest.raises(ValueError, match="32 terms"):
        cuda._cuda.combine(call, False)


def test_unavailable_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable().startswith("torch sees no CUDA device for ")
    monkeypatch.setattr(cuda._backend, "_cuda", None)
    assert "not built" in cuda.unavailable()


# On a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 67])
def test_a_gpu_gives_the_hosts_bits(host, monkeypatch, dtype, width):
    want = everything(dtype, width)
    extension = host[2]
    if extension is None:
        pytest.skip("the CUDA extension is not built")
    monkeypatch.setattr(cuda._backend, "_cuda", extension)
    try:
        for threads, blocks in [(256, 2**31 - 1), (256, 3), (64, 1000)]:
            extension.set_limits(threads, blocks)
            for a, b in zip(everything(dtype, width, "cuda"), want, strict=True):
                assert identical(a.cpu(), b)
    finally:
        extension.set_limits(256, 2**31 - 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_graph_reads_the_key_when_it_runs(host, monkeypatch):
    extension = host[2]
    if extension is None:
        pytest.skip("the CUDA extension is not built")
    monkeypatch.setattr(cuda._backend, "_cuda", extension)
    call = list(big_call(torch.float32, device="cuda"))
    cuda.combine(*call, True)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, eps = cuda.combine(*call, True)
    for draw in (1, 2):
        call[5].copy_(torch.tensor([3, draw]))
        graph.replay()
        want = cuda.combine(*call, True)
        assert torch.equal(out, want[0]) and torch.equal(eps, want[1])
