"""The host overhead of every op up to the launch: `python -m benchmarks.host`. Needs g++, but no GPU.

The CUDA backend is compiled for the host, with launches that do nothing (tests/support/cuda_shim). What remains is the
time of a call before the GPU starts, except for torch's look-up of the current stream and its CUDA allocator, which a
machine without a GPU does not have. For comparison: the CPU backend, whose kernels run on these tiny tensors, eager
torch for the same formula and, for scale, one multiplication in torch. All alternate in one run for each case. The
figures are medians in microseconds per call.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tables
from benchmarks.timing import alternate, with_warm_allocator

if TYPE_CHECKING:
    from benchmarks.cases import Case, Setting

RESULTS = Path(__file__).parent / "results"
SIZE = (1, 3, 8, 8)
CUDA, CPU = "CUDA, launches that do nothing", "CPU backend"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each case [2]")
    parser.add_argument("--only", default="", help="only the cases whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "host.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.host")

    import torch

    from benchmarks import cases
    from benchmarks.cases import EAGER, Setting, selected

    torch.set_num_threads(1)
    cases._compiled = lambda function, noisy: {}  # type: ignore[assignment]
    print(f"torch {torch.__version__}, {platform.machine()}, one thread, {'x'.join(map(str, SIZE))} float32, us a call")
    rows = []
    with cuda_that_launches_nothing() as through:
        for case in [*selected(args.only), *least()]:
            providers = case.build(Setting(SIZE, "cpu"))
            timed = {EAGER: providers[EAGER]}
            if ours := providers.get("mmfast"):
                timed = {CUDA: through(ours), CPU: ours} | timed
            times = alternate(timed, args.seconds)
            print(f"{case.op + ': ' + case.case:<58}" + "".join(f"{n} {t.p50 * 1e6:7.1f}   " for n, t in times.items()))
            for name, t in times.items():
                rows.append({"op": case.op, "case": case.case, "as": name, "p50_us": round(t.p50 * 1e6, 2)})
            tables.write(rows, args.out)
    print(args.out)


def least() -> list[Case]:
    """The simplest differentiable operation in torch: a multiplication by 2."""
    import torch

    from benchmarks.cases import EAGER, Case

    def forward(setting: Setting) -> dict[str, Callable[[], object]]:
        return {EAGER: lambda: setting.z0 * 2.0}

    def recorded(setting: Setting) -> dict[str, Callable[[], object]]:
        x = setting.z0.clone().requires_grad_()
        return {EAGER: lambda: torch.autograd.grad(x * 2.0, x, setting.grad)}

    name = "torch's multiplication by 2"
    return [Case(name, "forward", 2, forward), Case(name, "forward and backward", 4, recorded)]


@contextmanager
def cuda_that_launches_nothing() -> Iterator[Callable[[Callable[[], object]], Callable[[], object]]]:
    """Yield a function that routes a call through the CUDA backend, on host tensors."""
    from benchmarks.cuda_on_host import load
    from mmfast.ops import around, backends
    from mmfast.ops.backends import cuda

    module, library = load("-O2")
    around.tell_extension(module)
    library.run_nothing(1)
    before = cuda._cuda, backends.LOOKING, backends.choose
    cuda._cuda = module
    looking = backends.looking([module])

    def through(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            backends.LOOKING, backends.choose = looking, lambda device: cuda
            try:
                return call()
            finally:
                _, backends.LOOKING, backends.choose = before

        return run

    try:
        yield through
    finally:
        cuda._cuda = before[0]


if __name__ == "__main__":
    main()
