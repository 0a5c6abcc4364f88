"""Every module can be the first of the package that a program imports: no order of imports matters."""

import os
import pkgutil
import subprocess
import sys

import pytest

import mmfast

MODULES = sorted(module.name for module in pkgutil.walk_packages(mmfast.__path__, "mmfast."))

# Each in a child of a process that has mmfast alone: a module's own first import is that of the package.
PROGRAM = """
import importlib, os, sys, traceback
import numpy, omegaconf, PIL.Image, safetensors.torch, torch.utils.data, tqdm, yaml
import mmfast

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        code = 0
        try:
            importlib.import_module(name)
        except (ImportError, mmfast.MmfastError) as error:
            missing = getattr(error, "name", None) or ""
            said = any(words in str(error) for words in ("is not installed", "fails to import"))
            optional = said or missing.split(".")[0] in ("diffusers", "triton")
            code = 0 if optional else 1
            if code:
                traceback.print_exc()
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    if os.waitpid(child, 0)[1]:
        print(name)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_module_may_come_first():
    assert len(MODULES) > 60
    run = subprocess.run([sys.executable, "-c", PROGRAM, *MODULES], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == "", run.stdout + run.stderr
