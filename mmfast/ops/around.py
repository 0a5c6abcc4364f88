"""What surrounds a call to an op: autograd, compilers, tracers, transforms and dispatch modes, which have to see it.

torch has no public API for some of these checks. Each private name is looked up once, here. If one is missing, the
answer is conservative, which costs speed but never changes a result.
"""

from __future__ import annotations

import contextlib
import threading
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _python_dispatch as python_dispatch

from mmfast.ops import extensions
from mmfast.ops.call import Block, KeptTables


def private(path: str, root: Any = torch) -> Any:
    """Look up a private name of torch; None if this version does not have it."""
    try:
        return attrgetter(path)(root)
    except AttributeError:
        return None


MODES = private("_C._len_torch_dispatch_stack")
TRANSFORMS = private("_C._functorch.peek_interpreter_stack")
TRACING = private("_C._get_tracing_state")
BELOW_AUTOGRAD = private("_C._AutoDispatchBelowAutograd")
_BATCHED = private("_C._functorch.is_legacy_batchedtensor")
_NO_TRANSFORMS = private("_C._DisableFuncTorch")
_NO_MODES = private("_disable_current_modes", python_dispatch)
_ZERO = private("_is_zerotensor", Tensor)
_LEVEL = private("_current_level", forward_ad) is not None

_local = threading.local()  # two threads must not fill the same tensor


def seed_tensor() -> Tensor:
    """This thread's buffer for drawing a seed; creating one takes longer than filling it."""
    try:
        return _local.seed
    except AttributeError:
        with torch.inference_mode(False):
            _local.seed = torch.empty((), dtype=torch.int64, device="cpu")
        return _local.seed


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """Draw 64 bits from a CPU generator (None: torch's default). csrc/torch_state.h has the same function."""
    return int(seed_tensor().random_(-(1 << 63), None, generator=generator))


def tell_extension(extension: Any) -> bool:
    """Give an extension the torch objects that it inspects and calls. Returns whether it can check a call by itself."""
    extension.use_exchange_api(getattr(Tensor, "__dlpack_c_exchange_api__", None))
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
    extension.tell(Tensor, torch.nn.Parameter, torch, dtypes, Block, KeptTables)
    if MODES is None or TRANSFORMS is None or TRACING is None or not _LEVEL:
        return False
    extension.watch((MODES, TRACING, TRANSFORMS), forward_ad, seed_tensor)
    return True


_told: dict[str, bool] = {}
for _name in ("_mmfast_cpu", "_mmfast_cuda"):
    _extension, _ = extensions.load(_name)
    if _extension is not None:
        _told[_name] = tell_extension(_extension)


def can_look(name: str) -> bool:
    """Whether this extension can check by itself that nothing has to see a call."""
    return _told.get(name, False)


def transformed() -> bool:
    """Whether torch.func, forward-mode AD or torch.jit is active. They all need the reference's torch ops."""
    if torch.compiler.is_compiling():  # the compiler cannot trace these checks, and traces the op itself
        return False
    if TRANSFORMS is None or TRACING is None or not _LEVEL:
        return True
    # torch.jit.trace does not support lists of sizes
    return TRANSFORMS() is not None or forward_ad._current_level >= 0 or TRACING() is not None


def watched() -> bool:
    """Whether a compiler or a dispatch mode has to see the ops."""
    return torch.compiler.is_compiling() or MODES is None or MODES() > 0


def by_torch_ops(grad: Tensor) -> bool:
    """Whether a backward pass must use torch's ops: to be differentiated again, or for a batch of gradients."""
    if torch.is_grad_enabled() or transformed():
        return True
    return not torch.compiler.is_compiling() and (_BATCHED is None or _BATCHED(grad))


def in_memory(x: Tensor) -> Tensor:
    """Materialise x for a kernel: resolve a pending negation, and write out a zero tensor that has no storage."""
    if torch.compiler.is_compiling():
        return x
    if x.is_neg():
        return x.resolve_neg()
    return x.clone() if _ZERO is None or _ZERO(x) else x


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether gradients are enabled and any of the tensors requires one."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # any() over a generator would take a microsecond more
        if x is not None and x.requires_grad:
            return True
    return False


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether all are plain tensors or parameters. A subclass may override what the ops do."""
    for x in tensors:
        if type(x) is not Tensor and x is not None and type(x) is not torch.nn.Parameter:
            return False
    return True


def below_autograd() -> Any:
    """A context in which an op calls its kernel directly, not its autograd formula again."""
    return contextlib.nullcontext() if BELOW_AUTOGRAD is None else BELOW_AUTOGRAD()


@contextlib.contextmanager
def outside() -> Any:
    """A context in which new tensors are plain and can outlive the call: no inference tensors, wrappers or fakes."""
    with torch.inference_mode(False), contextlib.ExitStack() as stack:
        for enter in (_NO_TRANSFORMS, _NO_MODES):
            if enter is not None:
                stack.enter_context(enter())
        yield


def version(x: Tensor) -> int:
    """The tensor's version counter; 0 for an inference tensor, which does not keep one."""
    return 0 if x.is_inference() else getattr(x, "_version", 0)
