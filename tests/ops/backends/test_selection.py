"""Which backend serves a call, what each says where it cannot, and what it is handed."""

import sys
from types import SimpleNamespace as Some

import fresh
import pytest
import torch

from mmfast import ops
from mmfast.errors import BackendError
from mmfast.ops import backends, extensions, reference
from mmfast.ops.backends import cpu
from mmfast.ops.call import Call, Noise, Tables

CACHES = (backends.load, backends.automatic, backends.forced, backends.has_kernel)


def module(name, devices, missing=None):
    return Some(name=name, devices=devices, unavailable=lambda: missing, describe=lambda: name)


@pytest.fixture
def three(monkeypatch):
    """A backend that cannot run, one of a GPU, and the reference, in this order."""
    found = {
        "broken": module("broken", ("cpu", "cuda"), "no driver"),
        "gpu": module("gpu", ("cuda",)),
        "reference": module("reference", ("cpu", "cuda")),
    }
    monkeypatch.setattr(backends, "MODULES", {name: name for name in found})
    monkeypatch.setattr(backends.importlib, "import_module", found.__getitem__)
    for cached in CACHES:
        cached.cache_clear()
    yield found
    for cached in CACHES:
        cached.cache_clear()


def test_the_first_that_can_run_serves_and_the_reference_says_why_it_is_slow(three):
    assert backends.automatic("cuda") is three["gpu"]
    with pytest.warns(RuntimeWarning) as caught:
        assert backends.automatic("cpu") is three["reference"]
    assert [str(x.message) for x in caught] == ["mmfast computes on cpu in plain torch, slowly: broken: no driver"]
    assert caught[0].filename == __file__  # it points at the caller
    assert backends.has_kernel(torch.device("cuda")) and not backends.has_kernel(torch.device("cpu"))
    assert backends.report() == {
        "broken": {"available": False, "detail": "no driver"},
        "gpu": {"available": True, "detail": "gpu"},
        "reference": {"available": True, "detail": "reference"},
    }


def test_the_reference_serves_any_device_forced_or_not():
    """Of meta tensors, which have no values, it gives the shapes; other backends are refused by name."""
    x = torch.zeros(2, 3, 4, 4, device="meta")
    with pytest.warns(RuntimeWarning, match="mmfast computes on meta in plain torch"):
        backends.automatic.__wrapped__("meta")
    with ops.backend("reference"):
        found = ops.block_mask(x, 0.5, 2, seed=1)
    assert [(y.device.type, [*y.shape]) for y in found] == [("meta", [2, 3, 4, 4]), ("meta", [2, 1, 4, 4])]
    if cpu.unavailable() is None:
        with pytest.raises(BackendError) as refused:
            backends.forced("cpu", "meta")
        assert str(refused.value) == "backend 'cpu' is forced, but the tensors are on 'meta'; it serves cpu"


@pytest.mark.parametrize(
    ("override", "variable", "forced"), [([], None, False), ([], "", False), (["cpu"], None, True), ([], "cpu", True)]
)
def test_one_word_of_the_user_forces(monkeypatch, override, variable, forced):
    monkeypatch.setattr(backends, "_override", override)
    monkeypatch.setattr(backends, "_FORCED", variable)
    assert backends.forced_by_user() is forced


def test_a_call_with_more_terms_than_a_backend_takes_goes_to_the_reference(monkeypatch):
    few = Some(max_terms=3)
    monkeypatch.setattr(backends, "choose", lambda device: few)
    for count, serves in ((0, few), (3, few), (4, reference)):
        assert backends.serving("cpu", count) is serves
        assert backends.for_terms(few, [None] * count) is serves


def test_without_its_extension_the_cpu_backend_says_so(monkeypatch):
    monkeypatch.setattr(cpu, "_missing", "not built")
    assert cpu.unavailable() == "not built"
    monkeypatch.setattr(cpu, "_missing", "")
    assert cpu.unavailable() is None


@pytest.mark.parametrize("interface", [None, extensions.INTERFACE - 1, extensions.INTERFACE])
def test_an_extension_of_another_version_is_not_used(monkeypatch, interface):
    stale = Some(__file__="there.so", **({} if interface is None else {"interface": interface}))
    monkeypatch.setitem(sys.modules, "_mmfast_stale", stale)
    module, reason = extensions.load.__wrapped__("_mmfast_stale")
    if interface == extensions.INTERFACE:
        assert module is stale and reason == ""
    else:
        needs = f"has interface {interface}, and this mmfast needs {extensions.INTERFACE}"
        assert module is None
        assert reason == f"the extension there.so {needs}; `pip install .` builds it anew"
    module, reason = extensions.load.__wrapped__("_mmfast_none_such")
    assert module is None and reason == (
        "the extension _mmfast_none_such is not built (No module named '_mmfast_none_such'); `pip install .` builds it"
    )


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no compiled kernels here")
def test_the_instruction_set_of_the_environment_holds_from_the_first_call():
    code = (
        "import torch; from mmfast import ops; ops.combine([torch.ones(1, 2)], torch.ones(1, 1)); import _mmfast_cpu; "
    )
    found = [fresh.run(code + "print(_mmfast_cpu.isa())", MMFAST_ISA=isa).stdout.strip() for isa in cpu.isas()]
    assert found == cpu.isas()


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no compiled kernels here")
def test_an_instruction_set_that_is_none_is_one_line_at_import():
    done = fresh.run("from mmfast import ops", MMFAST_ISA="sse9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mmfast.errors.BackendError: MMFAST_ISA: ") and "'sse9'" in last
    assert last.endswith(f"; it can be {', '.join(cpu.isas())}, or unset")


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no compiled kernels here")
def test_the_command_says_it_in_one_line_too():
    done = fresh.run("import sys; from mmfast.__main__ import main; sys.exit(main())", MMFAST_ISA="sse9")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("mmfast: error: MMFAST_ISA: ") and done.stderr.count("\n") == 1


def test_a_row_of_the_tables_that_is_an_int_is_cut_out_for_backends_that_take_none():
    coefs, sigma = torch.arange(8.0).reshape(4, 2), torch.arange(4.0)
    call = Call([], Tables(coefs, sigma), 2, None, (5, 3), torch.float32)
    cut = call.one_row()
    assert cut.rows is None and torch.equal(cut.tables.coefs, torch.tensor([[4.0, 5.0]]))
    assert cut.tables.sigma.tolist() == [2.0] and cut._replace(tables=call.tables, rows=2) == call
    for rows in (None, torch.tensor([1, 0])):
        same = call._replace(rows=rows)
        assert same.one_row() is same


def test_a_ratio_for_each_sample_may_have_any_strides(each_backend):
    ratios = torch.tensor([[0.1, 9.0], [0.5, 9.0], [0.9, 9.0]])[:, 0]
    assert not ratios.is_contiguous()
    x = torch.ones(3, 1, 8, 8)
    with ops.backend(each_backend):
        for exact in (True, False):
            found, expected = (ops.block_mask(x, r, 2, exact=exact, seed=4) for r in (ratios, ratios.clone()))
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.skipif(cpu.unavailable() is not None, reason="no compiled kernels here")
def test_thresholds_handed_to_the_kernel_may_have_any_strides():
    hidden = torch.tensor([[2**60, 7], [2**62, 7], [2**61, 7]])[:, 0]
    x = torch.ones(3, 1, 8, 8)
    found, expected = (cpu.block_mask(x, h, Noise((5, 1), None, 0), (2, 2), False) for h in (hidden, hidden.clone()))
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
