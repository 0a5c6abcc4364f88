"""Kinds that are modules: one for each file of a folder, and those that installed packages add by entry points."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Collection, Iterable
from types import ModuleType

from mmfast.errors import MmfastError, unknown


class ModuleKinds(dict[str, str]):
    """The full name of each kind's module, by the name of the kind. `KINDS["mine"] = "my_module"` adds one.

    package: of the folder, for example "mmfast.data". It is also the group of the entry points. Those that have the
    name of a kind of the package are ignored.
    path: the folder's `__path__`.
    key: the option that names a kind, for errors.
    needs: the names that each module defines.
    beside: the modules of the folder that are not kinds.
    """

    def __init__(
        self, package: str, path: Iterable[str], key: str, needs: Collection[str], beside: Collection[str] = ()
    ):
        own = {module.name: f"{package}.{module.name}" for module in pkgutil.iter_modules(path)}
        super().__init__({name: module for name, module in own.items() if name not in beside})
        self.package, self.key, self.needs = package, key, needs
        self._add_installed()

    def _add_installed(self) -> None:
        for point in importlib.metadata.entry_points(group=self.package):
            self.setdefault(point.name, point.value)

    def module(self, name: str) -> ModuleType:
        """Import the module of a kind. Raises MmfastError if it is unknown, cannot be imported or is not a kind."""
        if name not in self:
            self._add_installed()  # since the import
        if name not in self:
            raise unknown(self.key, name, self)
        source = self[name]
        if source.startswith(f"{self.package}."):
            return importlib.import_module(source)
        try:
            found = importlib.import_module(source)
        except Exception as error:  # other packages' code may raise anything
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise MmfastError(
                f"{self.key} is {name!r}, but its module {source} cannot be imported: {reason}"
            ) from error
        lacks = [x for x in self.needs if not hasattr(found, x)]
        if lacks:
            raise MmfastError(f"{self.key} is {name!r}, but its module {source} does not define {' and '.join(lacks)}")
        return found
