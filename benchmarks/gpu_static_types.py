"""The properties of one compiled GPU kernel, read from its machine code without running it."""

from __future__ import annotations

from dataclasses import dataclass


class CannotCompileError(RuntimeError):
    """The tools to compile a source of kernels are missing; the message is one line."""


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one target.

    Loads and stores are instructions on global memory (LDG, STG) in the machine code, of 128 bits or fewer.
    bytes_per_element counts the bytes moved per output element in the typical case that `note` names;
    least_bytes_per_element reads every input once and writes every output once.
    """

    backend: str  # "cuda", "triton"
    kernel: str  # "combine float32"
    target: str  # "sm_90"
    registers: int  # per thread
    spills: int  # bytes of spill stores and loads
    loads_128: int
    stores_128: int
    loads_narrow: int
    stores_narrow: int
    bytes_per_element: float
    least_bytes_per_element: float
    note: str = ""
    expects: tuple[str, ...] = ("loads", "stores")  # which of them use whole vectors

    @property
    def problem(self) -> str:
        """What is wrong with this kernel, or "": spills, or no 128-bit loads or stores."""
        if self.spills:
            return f"spills {self.spills} bytes"
        counts = {"loads": self.loads_128, "stores": self.stores_128}
        missing = [name for name in self.expects if counts[name] == 0]
        return f"no 128-bit {' or '.join(missing)}" if missing else ""
