"""mmfast: multimodal, multitask diffusion on fused kernels.

One model generates images together with their masks, labels and embeddings, any of them given any other.
"""

from mmfast import ops
from mmfast.errors import MmfastError
from mmfast.schedule import Schedule, Weight, bridge, carried, constant, none, shift

__version__ = "0.1.0"

__all__ = [
    "MmfastError",
    "Schedule",
    "Weight",
    "__version__",
    "bridge",
    "carried",
    "constant",
    "none",
    "ops",
    "shift",
]
