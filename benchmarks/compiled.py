"""Whether a compiled graph without noise should have one op of ours, or torch's ops for Inductor to fuse.

`python -m benchmarks.compiled` times q_sample with the noise passed in and posterior_mean, alone and between pointwise
neighbours, compiled both ways, in float32 with two modalities. Writes benchmarks/results/compiled.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import tables
from benchmarks.timing import alternate, with_warm_allocator

RESULTS = Path(__file__).parent / "results"
SIZES = ((1, 3, 8, 8), (64, 3, 64, 64), (128, 3, 128, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each size and case [4]")
    parser.add_argument("--device", help="cpu or cuda [cuda if there is one]")
    parser.add_argument("--out", type=Path, default=RESULTS / "compiled.csv", help="the CSV file")
    args = parser.parse_args()
    with_warm_allocator("benchmarks.compiled")

    import torch

    from benchmarks.cases import Setting
    from mmfast import ops
    from mmfast.ops import dispatch

    rows, device = [], args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for size in SIZES:
        s = Setting(size, device)
        functions = {
            "q_sample": lambda z, a, b, e, s=s: ops.q_sample(z, {"a": a, "b": b}, s.t, s.sched, noise=e)[0],
            "posterior_mean": lambda z, a, b, e, s=s: ops.posterior_mean(z, e, {"a": a, "b": b}, s.t, s.sched),
        }
        for name, function in functions.items():
            for around in ("alone", "between pointwise neighbours"):

                def whole(z, a, b, e, function=function, around=around):  # type: ignore[no-untyped-def]
                    if around == "alone":
                        return function(z, a, b, e)
                    return torch.nn.functional.silu(function(z, a.tanh(), b * 0.5 + 1, e)) * 2

                providers = {}
                for plain, kind in ((True, "torch's ops"), (False, "one op")):
                    torch._dynamo.reset()
                    dispatch.PLAIN_IN_GRAPHS = plain
                    compiled = torch.compile(whole, fullgraph=True, dynamic=False)
                    compiled(s.z0, s.a, s.b, s.eps)
                    providers[kind] = lambda f=compiled, s=s, p=plain: _with(dispatch, p, f, s.z0, s.a, s.b, s.eps)
                times = alternate(providers, args.seconds, device)
                dispatch.PLAIN_IN_GRAPHS = True
                shape = "x".join(map(str, size))
                faster = times["one op"].p50 / times["torch's ops"].p50
                print(f"{shape:<16}{name:<16}{around:<30}torch's ops are {faster:.2f} times as fast as one op")
                for kind, t in times.items():
                    rows.append(
                        {"op": name, "around": around, "size": shape, "as": kind, "p50_us": round(t.p50 * 1e6, 2)}
                    )
    tables.write(rows, args.out)
    print(args.out)


def _with(dispatch, plain, function, *args):  # type: ignore[no-untyped-def]
    dispatch.PLAIN_IN_GRAPHS = plain  # the compiled graph has a guard on it
    return function(*args)


if __name__ == "__main__":
    main()
