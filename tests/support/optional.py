"""Optional packages of the tests."""

import importlib
from importlib.metadata import version

import pytest


def diffusers():
    """The package diffusers. The test or file is skipped if it is not installed, or too new for this torch."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        reason = str(error)
    except AttributeError as error:  # 0.41 uses torch.accelerator, which torch 2.4 has not
        reason = f"diffusers {version('diffusers')} does not import beside torch {version('torch')}: {error}"
    pytest.skip(reason, allow_module_level=True)
