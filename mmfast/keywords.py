"""Long or shared lists of keyword arguments, each declared once with its type and default.

A function takes them as `**options: Unpack[Some]`, with a TypedDict for type checkers and a dict of the defaults. With
`shows`, help() and completion show the whole list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ForwardRef, TypeVar


class _ByConfig:
    """Stands in a signature for a default that the config decides."""

    def __repr__(self) -> str:
        return "<the config's>"


BY_CONFIG = _ByConfig()

Options = TypeVar("Options", bound=Mapping[str, object])
Function = TypeVar("Function", bound=Callable[..., Any])


def filled(function: str, defaults: Options, given: Options) -> Options:
    """The options given, over their defaults. Raises TypeError for one that the function does not take."""
    found = {**defaults, **given}
    if len(found) > len(defaults):
        raise unexpected(function, defaults, given)
    return found  # type: ignore[return-value]


def unexpected(function: str, defaults: Mapping[str, object], given: Mapping[str, object]) -> TypeError:
    """Python's error for an unexpected keyword argument, with a list of the valid ones."""
    name = next(name for name in given if name not in defaults)
    return TypeError(f"{function}() got an unexpected keyword argument {name!r}; its options are {', '.join(defaults)}")


def shows(kind: type, defaults: Mapping[str, object]) -> Callable[[Function], Function]:
    """Make a function's signature list the options of the TypedDict `kind`, each with its default."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [x for x in signature.parameters.values() if x.kind is not inspect.Parameter.VAR_KEYWORD]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=_written(of))
            for name, of in kind.__annotations__.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return function

    return decorate


def _written(annotation: object) -> object:
    """An annotation as written in the source."""
    return annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
