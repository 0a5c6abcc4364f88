"""What is at work around an op: gradients, compilers, tracers, transforms and dispatch modes all have to see it.

torch has no public way to ask for some of these. Each private name is looked up once, here; where one is gone, the
answer is the careful one, which costs speed and never a result.
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
    """A name of torch's that is not public, or None where this torch has none of that name."""
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

_local = threading.local()  # two threads must not fill one tensor


def seed_tensor() -> Tensor:
    """This thread's tensor to draw a seed in: to make one takes longer than to fill it."""
    try:
        return _local.seed
    except AttributeError:
        with torch.inference_mode(False):
            _local.seed = torch.empty((), dtype=torch.int64, device="cpu")
        return _local.seed


def fresh_seed(generator: torch.Generator | None = None) -> int:
    """64 bits of a generator of the CPU's, torch's default one for None; csrc/torch_state.h has the same function."""
    return int(seed_tensor().random_(-(1 << 63), None, generator=generator))


def tell_extension(extension: Any) -> bool:
    """Tell an extension what it looks at and calls in torch; whether it can then look for itself."""
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
    """Whether this extension can see for itself that nothing is at work around a call."""
    return _told.get(name, False)


def transformed() -> bool:
    """Whether torch.func, forward mode or torch.jit is at work: all go through the reference's torch ops."""
    if torch.compiler.is_compiling():  # the compiler cannot look at either, and traces the op itself
        return False
    if TRANSFORMS is None or TRACING is None or not _LEVEL:
        return True
    # torch.jit.trace knows no list of sizes
    return TRANSFORMS() is not None or forward_ad._current_level >= 0 or TRACING() is not None


def watched() -> bool:
    """Whether a compiler or dispatch mode has to see the ops."""
    return torch.compiler.is_compiling() or MODES is None or MODES() > 0


def by_torch_ops(grad: Tensor) -> bool:
    """Whether a backward pass has to be made of torch's ops: to be differentiated, or for many gradients at once."""
    if torch.is_grad_enabled() or transformed():
        return True
    return not torch.compiler.is_compiling() and (_BATCHED is None or _BATCHED(grad))


def in_memory(x: Tensor) -> Tensor:
    """x with its values where a kernel looks for them: no pending negation, no zeros that were never written."""
    if torch.compiler.is_compiling():
        return x
    if x.is_neg():
        return x.resolve_neg()
    return x.clone() if _ZERO is None or _ZERO(x) else x


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether any of the tensors is to be differentiated."""
    if not torch.is_grad_enabled():
        return False
    for x in tensors:  # a loop: any() over a generator takes a microsecond more
        if x is not None and x.requires_grad:
            return True
    return False


def ordinary(*tensors: Tensor | None) -> bool:
    """Whether the tensors are torch's own, and not of a subclass with a mind of its own."""
    for x in tensors:
        if type(x) is not Tensor and x is not None and type(x) is not torch.nn.Parameter:
            return False
    return True


def below_autograd() -> Any:
    """Within it an op goes to its kernel, and not to its gradient's formula again."""
    return contextlib.nullcontext() if BELOW_AUTOGRAD is None else BELOW_AUTOGRAD()


@contextlib.contextmanager
def outside() -> Any:
    """Tensors made within are plain ones that outlive the call: no inference tensors, wrappers or fakes."""
    with torch.inference_mode(False), contextlib.ExitStack() as stack:
        for enter in (_NO_TRANSFORMS, _NO_MODES):
            if enter is not None:
                stack.enter_context(enter())
        yield


def version(x: Tensor) -> int:
    """How often the tensor was written to; a tensor made in inference mode does not count."""
    return 0 if x.is_inference() else getattr(x, "_version", 0)
