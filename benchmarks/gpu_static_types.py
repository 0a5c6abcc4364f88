"""What is read off one compiled GPU kernel, without running it."""

from __future__ import annotations

from dataclasses import dataclass


class CannotCompileError(RuntimeError):
    """A source of compiled kernels has not the tools it needs here; the message is one line."""


@dataclass(frozen=True)
class Row:
    """One kernel compiled for one target.

    Loads and stores are instructions on global memory (LDG, STG) in the machine code: those of 128 bits and those of
    fewer. bytes_per_element is what the code moves in the typical case that `note` names, over the elements of its
    output; least_bytes_per_element is every input read once and every output written once.
    """

    backend: str  # "cuda", "triton"
    kernel: str  # "combine float32"
    target: str  # "sm_90"
    registers: int  # a thread
    spills: int  # bytes of spill stores and loads
    loads_128: int
    stores_128: int
    loads_narrow: int
    stores_narrow: int
    bytes_per_element: float
    least_bytes_per_element: float
    note: str = ""
    expects: tuple[str, ...] = ("loads", "stores")  # which of them a thread makes of whole vectors

    @property
    def problem(self) -> str:
        """Why this kernel is not as it should be, or nothing: spills, or no 128-bit loads or stores."""
        if self.spills:
            return f"spills {self.spills} bytes"
        counts = {"loads": self.loads_128, "stores": self.stores_128}
        missing = [name for name in self.expects if counts[name] == 0]
        return f"no 128-bit {' or '.join(missing)}" if missing else ""
