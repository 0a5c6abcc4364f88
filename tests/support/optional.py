"""What tests need that is not everywhere."""

import importlib
from importlib.metadata import version

import pytest
import torch

# Without the exchange API, as in torch 2.4, every call takes the long way, through the checks.
short_way = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no short way into C++"
)


def diffusers():
    """The package diffusers. The test or file is skipped if it is not installed, or too new for this torch."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        reason = str(error)
    except AttributeError as error:  # 0.41 uses torch.accelerator, which torch 2.4 has not
        reason = f"diffusers {version('diffusers')} does not import beside torch {version('torch')}: {error}"
    pytest.skip(reason, allow_module_level=True)
