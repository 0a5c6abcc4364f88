"""What only a GPU shows: the kernels of both GPU backends on one, its streams and graphs, and whole runs. Else skipped.

The kernels' own tests are those of test_cuda_kernel.py, which run them on the host: here their tensors are moved to the
GPU, with their strides, and the results back.
"""

import json
import statistics

import optional
import pytest
import test_cuda_kernel
import torch
from cuda_problems import DTYPES, real
from flat import load

import mmfast
from mmfast import config as configs
from mmfast import ops
from mmfast.build import build_data, build_model
from mmfast.data import Batch
from mmfast.files import load_tensors
from mmfast.ops import Block
from mmfast.run import Run
from mmfast.sample import sample
from mmfast.training import Trainer, graphs, train
from mmfast.training.examples import loader
from mmfast.training.objective import losses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

SCHED = mmfast.Schedule.cosine(1000, weights={"a": mmfast.bridge(2.0), "b": mmfast.bridge(1.0)})
NOISE = {"seed": 5, "sample_ids": torch.tensor([7, 2**45, 3])}


@pytest.fixture(params=["cuda", "triton"])
def kernels(request):
    """A backend's module, forced for the public ops as well."""
    module, reason = load(request.param)
    if reason is not None:
        pytest.skip(reason)
    with ops.backend(request.param):
        yield module


def to_gpu(x):
    """The same on the GPU: a tensor with its strides and its place in memory, or whatever holds tensors."""
    if isinstance(x, torch.Tensor):
        whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).cuda()
        return whole.as_strided(x.size(), x.stride(), x.storage_offset()).requires_grad_(x.requires_grad)
    if isinstance(x, Block):
        return Block(to_gpu(x.tensor), x.start, x.channels)
    if isinstance(x, torch.device):
        return torch.device("cuda")
    if isinstance(x, dict):
        return {name: to_gpu(value) for name, value in x.items()}
    if isinstance(x, (list, tuple)) and not isinstance(x, torch.Size):
        return type(x)(map(to_gpu, x))
    return x


def to_host(x):
    return type(x)(map(to_host, x)) if isinstance(x, (list, tuple)) else x.cpu()


class OnGPU:
    """A backend whose ops take tensors of the host and compute on the GPU."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        op = getattr(self.module, name)
        return lambda *args, **kwargs: to_host(op(*to_gpu(args), **to_gpu(kwargs)))


@pytest.mark.parametrize(
    "name", ["test_combine", "test_step", "test_squared_error", "test_combine_backward", "test_block_mask"]
)
def test_kernels_against_the_reference(kernels, monkeypatch, name):
    monkeypatch.setattr(test_cuda_kernel, "cuda", OnGPU(kernels))
    getattr(test_cuda_kernel, name)()


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_noise(kernels, monkeypatch, dtype):
    monkeypatch.setattr(test_cuda_kernel, "cuda", OnGPU(kernels))
    test_cuda_kernel.test_noise_is_a_function_of_the_identity(dtype)


def test_ranks_of_blocks(kernels, monkeypatch):
    monkeypatch.setattr(test_cuda_kernel, "cuda", OnGPU(kernels))
    test_cuda_kernel.test_integers_are_the_generators(None)


# The public ops


def randn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def calls(dtype=torch.float32):
    """Every public op by name, as a function of (x, y) [3, 4, 9, 20], t, the schedule and the noise."""

    def encodings(y):
        return {"a": y, "b": y[:, :, :1, :1]}

    def blocks(y):
        return {"b": Block(y[:, :1], 3, 4), "a": Block(y[:, 1:3, :1, :1], 1, 4)}

    def times(t):
        return torch.stack((t, t // 2, t // 3), 1)

    return {
        "q_sample by block": lambda x, y, t, s, n: ops.q_sample(Block(x[:, :1], 0, 4), blocks(y), times(t), s, **n),
        "step by block": lambda x, y, t, s, n: ops.step(x, Block(y[:, :1], 0, 4), blocks(y), times(t), s, **n),
        "posterior_sample by block": lambda x, y, t, s, n: ops.posterior_sample(x, y, blocks(y), times(t), s, **n),
        "q_sample": lambda x, y, t, s, n: ops.q_sample(x, encodings(y), t, s, **n),
        "multimodal_mean": lambda x, y, t, s, n: ops.multimodal_mean([x, y], s.W[t].to(real(dtype))),
        "posterior_mean": lambda x, y, t, s, n: ops.posterior_mean(x, y, encodings(y), t, s),
        "step": lambda x, y, t, s, n: ops.step(x, y, encodings(y), t, s, clamp=1.0, draw=1, **n),
        "loss": lambda x, y, t, s, n: ops.diffusion_loss(x, y.detach(), t, s, min_snr_gamma=5.0, **n),
        "loss of both": lambda x, y, t, s, n: ops.diffusion_loss(x, y, t, s, target="v", **n),
        "block_mask": lambda x, y, t, s, n: ops.block_mask(x, 0.4, 2, **n),
        "randn": lambda x, y, t, s, n: ops.randn(x.shape, dtype=dtype, device=x.device, **n),
    }  # fmt: skip


def results(name, device, dtype, grad):
    """What the op gives, and its gradients where it has any, on the host."""
    x, y = (randn(3, 4, 9, 20, dtype=dtype, seed=k).to(device).requires_grad_(grad) for k in (0, 1))
    t = torch.tensor([3, 700, 400], device=device)  # at T the step divides by nearly nothing
    noise = {"seed": 5, "sample_ids": NOISE["sample_ids"].to(device)}
    found = calls(dtype)[name](x, y, t, SCHED.to(device), noise)
    found = list(found) if isinstance(found, tuple) else [found]
    total = sum((z * (k + 1)).double().sum() for k, z in enumerate(found) if z.requires_grad)
    if isinstance(total, torch.Tensor):
        found += [g for g in torch.autograd.grad(total, [x, y], allow_unused=True) if g is not None]
    return [z.detach().cpu() for z in found]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", calls())
def test_ops_agree_with_the_cpu(kernels, name, dtype):
    """Two roundings to `dtype`, or two times the noise's four ulps of float32, of values up to the largest."""
    grad = name not in ("randn", "block_mask")
    found = results(name, "cuda", dtype, grad)
    with ops.backend("reference"):
        expected = results(name, "cpu", dtype, grad)
    unit = max(torch.finfo(dtype).eps, 4 * torch.finfo(torch.float32).eps)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = a.double(), b.double()
        assert float((a - b).abs().max()) <= 2 * unit * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", calls())
def test_nothing_waits_for_the_gpu(kernels, name):
    inputs = [randn(3, 4, 9, 20, seed=k).cuda().requires_grad_() for k in (0, 1)]
    args = [*inputs, torch.tensor([3, 999, 400], device="cuda"), SCHED.to("cuda"), to_gpu(NOISE)]
    call = calls()[name]

    def both():
        found = call(*args)
        first = found[0] if isinstance(found, tuple) else found
        if first.requires_grad:
            first.sum().backward()

    both()  # loads and compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        both()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_training_step_in_a_graph(kernels):
    """Captured once and replayed, it reads new data, times and ids from where they lie."""
    x, y = (randn(3, 4, 9, 20, seed=k).cuda() for k in (0, 1))
    t, ids, sched = torch.tensor([3, 999, 400], device="cuda"), torch.arange(3, device="cuda"), SCHED.to("cuda")
    noise = {"seed": 5, "sample_ids": ids}

    def work():
        z = ops.q_sample(x, {"a": y, "b": y}, t, sched, return_noise=False, **noise)
        prediction = z.requires_grad_()
        loss = ops.diffusion_loss(prediction, x, t, sched, **noise)
        return z, loss, torch.autograd.grad(loss, prediction)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    for k in range(2):
        x.copy_(randn(3, 4, 9, 20, seed=k + 5))
        t.copy_(torch.tensor([k + 1, 50, 700]))
        ids.add_(10)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, work(), strict=True))


def test_noise_takes_no_memory():
    """A megabyte of sum leaves no room for the noise beside it."""
    x, t = torch.zeros(64, 4, 32, 32, device="cuda"), torch.full((64,), 500, device="cuda")
    sched = mmfast.Schedule.cosine(1000).to("cuda")
    peaks = []
    for kept in (True, False):
        ops.q_sample(x, {}, t, sched, seed=1, return_noise=kept)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ops.q_sample(x, {}, t, sched, seed=1, return_noise=kept)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    size = x.numel() * 4
    assert size <= peaks[1] <= size + 2**16 and 2 * size <= peaks[0]


@pytest.mark.parametrize("name", ["q_sample", "step", "loss", "block_mask"])
def test_compiled_by_inductor(kernels, name):
    x, y = (randn(3, 4, 9, 20, seed=k).cuda() for k in (0, 1))
    args = [x, y, torch.tensor([3, 999, 400], device="cuda"), SCHED.to("cuda"), to_gpu(NOISE)]
    torch._dynamo.reset()
    compiled = torch.compile(calls()[name], fullgraph=True)
    found, expected = compiled(*args), calls()[name](*args)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_gradients(kernels):
    x, y = (randn(2, 3, 4, 5, dtype=torch.float64, seed=k).cuda().requires_grad_() for k in (0, 1))
    t, sched = torch.tensor([3, 400], device="cuda"), SCHED.to("cuda")
    torch.autograd.gradcheck(lambda x, y: ops.q_sample(x, {"a": y, "b": y[:, :1]}, t, sched, seed=1)[0], (x, y))
    torch.autograd.gradcheck(lambda x, y: ops.diffusion_loss(x, y, t, sched, seed=1), (x, y))
    torch.autograd.gradcheck(lambda x: ops.block_mask(x, 0.4, 2, seed=1)[0], (x,))


def test_opcheck(kernels):
    terms = [randn(3, 4, 9, 20, seed=k).cuda() for k in (0, 1)]
    coefs, sigma = randn(3, 2, seed=3).cuda(), randn(3, seed=4).abs().cuda()
    key, ids = torch.tensor((5, 2), device="cuda"), torch.arange(3, device="cuda")
    noise, after = (key, ids, 6), ([3, 4, 9, 20], torch.float32)
    combined = (terms, [-1, -1], coefs, sigma, None, None, None, *noise, *after)
    torch.library.opcheck(torch.ops.mmfast.combine.default, (*combined, True))
    weighted = (terms, [-1, -1], coefs, sigma, None, sigma, None, *noise, *after)
    torch.library.opcheck(torch.ops.mmfast.squared_error.default, (*weighted, 0.3, True))
    hidden = torch.tensor([3, 0, 5 * 7], device="cuda")
    torch.library.opcheck(torch.ops.mmfast.block_mask.default, (terms[0], hidden, *noise, [2, 3], True))


# Whole runs

UNET = "{kind: unet, channels: 16, multipliers: [1, 2], blocks: 1, attention: [4], patch: 2, norm: layer}"
SMALL = [
    ("train.batch_size", "16"), ("train.sample_every", "0"), ("train.tensorboard", "false"), ("sample.steps", "3"),
    ("sample.count", "2"), ("evaluate.samples", "0"), ("train.log_every", "2"),
]  # fmt: skip
NETWORKS = {"mlp": "{kind: mlp, width: 32, blocks: 1, features: 4}", "unet": UNET}


def small(network, **extra):
    pairs = [(key.replace("__", "."), str(value)) for key, value in extra.items()]
    return configs.load("digits", [*SMALL, ("backbone", NETWORKS[network]), *pairs])


def batch_of(config):
    return build_data(config).train.__getitems__(list(range(16)))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_and_its_gradients_are_the_cpus(network):
    config, found = small(network), []
    for device in ("cpu", "cuda"):
        model = build_model(config).to(device)
        batch = batch_of(config).to(torch.device(device))
        parts = losses(model, batch, torch.arange(16, device=device), config)
        torch.stack(list(parts.values())).sum().backward()
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        found.append(({name: float(x) for name, x in parts.items()}, gradient))
    (want, g), (got, h) = found
    # TF32 products on the GPU: 10 bits.
    assert all(abs(got[name] - want[name]) <= 2e-3 * max(1, abs(want[name])) for name in want)
    assert float((g - h).norm() / g.norm()) < 1e-2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_goes_on_bit_for_bit(tmp_path, network, precision):
    """Stopped and restored in the middle, and left alone: the same weights, in torch's deterministic mode."""
    config = small(network, train__steps=8, train__precision=precision, train__checkpoint_every=4)
    whole = train(config, str(tmp_path / "whole"), quiet=True)
    data, run = build_data(config), Run.start(str(tmp_path / "parts"), config)
    for until in (4, 8):
        trainer = Trainer(config, run, data)
        trainer.restore()
        batches = loader(config, data.train, trainer.done)
        while trainer.done < until:
            trainer.step(batches, trainer.model)
        trainer.checkpoint()
    a, b = (load_tensors(folder / "ema.safetensors")[0] for folder in (whole.folder, run.folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("network", NETWORKS)
def test_samples_are_the_cpus(network):
    """The same noise on both, so the same samples but for the rounding of the network."""
    config = small(network)
    model = build_model(config).eval()
    torch.manual_seed(0)
    for p in model.parameters():  # new weights are zero where they would hide the network
        torch.nn.init.normal_(p, std=0.05)
    options = {"steps": 4, "sampler": "ddim", "progress": False, "seed": 3}
    want = sample(model, 8, **options)["image"]
    got = sample(model.cuda(), 8, **options)["image"].cpu()
    assert statistics.fmean((got - want).abs().flatten().tolist()) < 1e-2


def test_a_compiled_network_learns(tmp_path):
    config = small("unet", train__steps=60, train__compile=True, train__precision="bf16")
    run = train(config, str(tmp_path / "run"), quiet=True)
    loss = [json.loads(line)["loss"] for line in run.stats_file.read_text().splitlines()]
    assert statistics.fmean(loss[-15:]) < statistics.fmean(loss[:15])


@pytest.mark.parametrize("network", NETWORKS)
def test_graphs_change_nothing(tmp_path, network, monkeypatch):
    """The same kernels in the same order, replayed: the same weights but for sums in another order."""
    found, captured = [], []
    capture = graphs.capture
    monkeypatch.setattr(graphs, "capture", lambda *args: captured.append(1) or capture(*args))
    for replays in (False, True):
        config = small(network, train__steps=8, train__precision="bf16", train__cuda_graphs=replays)
        if not found:
            found.append(torch.cat([p.detach().flatten() for p in build_model(config).parameters()]))
        run = train(config, str(tmp_path / str(replays)), quiet=True)
        weights = load_tensors(run.folder / "model.safetensors")[0]
        names = dict(build_model(config).named_parameters())
        found.append(torch.cat([weights[name].flatten() for name in names]))
    assert captured == [1]
    start, eager, replayed = found
    assert float((replayed - eager).norm()) < 0.02 * float((eager - start).norm())


def test_a_step_does_not_wait_for_the_gpu(tmp_path):
    config = small("unet", train__precision="bf16")
    data = build_data(config)
    trainer = Trainer(config, Run.start(str(tmp_path / "run"), config), data)
    batches = loader(config, data.train, 0, pinned=True)
    for _ in range(2):
        trainer.step(batches, trainer.model)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(batches, trainer.model)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_generator_for_each_sample():
    """diffusers' scheduler with a list of generators draws ids on the host."""
    optional.diffusers()
    from mmfast.diffusers import DDPMScheduler

    scheduler = DDPMScheduler()
    scheduler.set_timesteps(10)
    x, eps = (randn(3, 4, 8, 8, seed=k) for k in (0, 1))
    found = [
        scheduler.step(
            eps.to(device), scheduler.timesteps[3], x.to(device),
            generator=[torch.Generator().manual_seed(k) for k in range(3)],
        ).prev_sample.cpu()
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_missing_modalities_on_a_gpu():
    config = small("mlp")
    model, batch = build_model(config).cuda(), batch_of(config)
    present = {"mask": torch.arange(16) % 2 == 0}
    parts = losses(model, Batch(batch.data, present).to(torch.device("cuda")), torch.arange(16, device="cuda"), config)
    assert all(bool(x.isfinite()) for x in parts.values())
