"""The mutants of a source file: each is the source with one small change."""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

# A change: its kind, the node to replace, and what replaces it.
Change = tuple[str, ast.AST, ast.AST]


@dataclass(frozen=True)
class Mutant:
    """`source` is the whole file with one change on `lines` (first, last), in which `was` has become `now`.

    before and after are the lines of the change, joined.
    """

    module: str
    kind: str
    lines: tuple[int, int]
    was: str
    now: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> str:
        """Its identity, the same in every run while the module is the same."""
        return hashlib.sha256(f"{self.module}\n{self.source}".encode()).hexdigest()[:16]

    def __str__(self) -> str:
        was, now = _differing(self.was, self.now)
        return f"{self.module}:{self.lines[0]}: {was}  ->  {now}"


def _differing(was: str, now: str, around: int = 30) -> tuple[str, str]:
    """Both texts, cut to where they differ and what stands around it."""
    start = next((k for k, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    end = 0
    while end < min(len(was), len(now)) - start and was[-1 - end] == now[-1 - end]:
        end += 1

    def cut(text: str) -> str:
        first, last = max(0, start - around), min(len(text), len(text) - end + around)
        return ("..." if first else "") + text[first:last] + ("..." if last < len(text) else "")

    return cut(was), cut(now)


COMPARISONS: dict[type, type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPPOSITES = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)  # of these, `comparison` is `not`
ARITHMETIC: dict[type, type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift,
    ast.BitXor: ast.BitAnd, ast.RShift: ast.LShift, ast.MatMult: ast.Mult,
}  # fmt: skip
# Functions and methods that have a counterpart.
COUNTERPARTS = {"min": "max", "any": "all", "amin": "amax", "argmin": "argmax", "ceil": "floor", "sqrt": "square"}
COUNTERPARTS |= {other: name for name, other in COUNTERPARTS.items()} | {"mean": "sum", "sum": "mean"}
# Keywords that only guard: without `strict` no right program does anything else.
GUARDS = {"strict"}

# Their first two arguments may change places.
SYMMETRIC = {"min", "max", "minimum", "maximum", "lcm", "gcd", "equal"}


def _changed(node: Any, **fields: Any) -> Any:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _compare(node: ast.Compare) -> Iterator[Change]:
    for k, op in enumerate(node.ops):
        yield "comparison", node, _changed(node, ops=[*node.ops[:k], COMPARISONS[type(op)](), *node.ops[k + 1 :]])


def _arithmetic(node: ast.BinOp | ast.AugAssign) -> Iterator[Change]:
    yield "arithmetic", node, _changed(node, op=ARITHMETIC[type(node.op)]())


def _boolean(node: ast.BoolOp) -> Iterator[Change]:
    yield "boolean", node, _changed(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())


def _unary(node: ast.UnaryOp) -> Iterator[Change]:
    yield "unary", node, node.operand


def _negated(node: ast.If | ast.While | ast.IfExp | ast.comprehension) -> Iterator[Change]:
    for test in node.ifs if isinstance(node, ast.comprehension) else [node.test]:
        # Of these, another rule makes the same.
        turned = isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], OPPOSITES)
        if not turned and not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)):
            yield "not", test, ast.UnaryOp(ast.Not(), test)


def _constant(node: ast.Constant) -> Iterator[Change]:
    if isinstance(node.value, bool):
        yield "constant", node, ast.Constant(not node.value)
    elif isinstance(node.value, int | float):
        yield "constant", node, ast.Constant(node.value + 1)
        yield "constant", node, ast.Constant(node.value - 1)


def _returned(node: ast.Return) -> Iterator[Change]:
    if node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None):
        yield "return", node, ast.Return(ast.Constant(None))


def _removed(node: ast.stmt) -> Iterator[Change]:
    yield "removed", node, ast.Pass()


def _raised(node: ast.Raise) -> Iterator[Change]:
    if "NotImplementedError" not in ast.unparse(node):  # what every subclass replaces
        yield "removed", node, ast.Pass()


def _removed_call(node: ast.Expr) -> Iterator[Change]:
    if not isinstance(node.value, ast.Constant):  # a docstring, or `...`
        yield "removed", node, ast.Pass()


def _removed_assignment(node: ast.Assign) -> Iterator[Change]:
    """What another name would be missing for is left alone: only what is set in place, or anew from itself."""
    read = {name.id for name in ast.walk(node.value) if isinstance(name, ast.Name)}
    if all(not isinstance(x, ast.Name) or x.id in read for x in node.targets) and not isinstance(
        node.targets[0], ast.Tuple
    ):
        yield "removed", node, ast.Pass()


def _call(node: ast.Call) -> Iterator[Change]:
    args = node.args
    f = node.func
    name = f.id if isinstance(f, ast.Name) else f.attr if isinstance(f, ast.Attribute) else ""
    plain = not any(isinstance(x, ast.Starred) for x in args[:2])
    if len(args) > 1 and plain and name not in SYMMETRIC and ast.dump(args[0]) != ast.dump(args[1]):
        yield "swapped", node, _changed(node, args=[args[1], args[0], *args[2:]])
    for k, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in GUARDS:
            yield "keyword", node, _changed(node, keywords=node.keywords[:k] + node.keywords[k + 1 :])
    if name in COUNTERPARTS:
        other = COUNTERPARTS[name]
        yield "counterpart", f, ast.Name(other) if isinstance(f, ast.Name) else _changed(f, attr=other)


RULES: dict[type, tuple[Callable[[Any], Iterator[Change]], ...]] = {
    ast.Compare: (_compare,),
    ast.BinOp: (_arithmetic,),
    ast.AugAssign: (_arithmetic, _removed),
    ast.BoolOp: (_boolean,),
    ast.UnaryOp: (_unary,),
    ast.If: (_negated,),
    ast.While: (_negated,),
    ast.IfExp: (_negated,),
    ast.comprehension: (_negated,),
    ast.Constant: (_constant,),
    ast.Return: (_returned,),
    ast.Expr: (_removed_call,),
    ast.Assign: (_removed_assignment,),
    ast.Delete: (_removed,),
    ast.Raise: (_raised,),
    ast.Continue: (_removed,),
    ast.Break: (_removed,),
    ast.Call: (_call,),
}


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The children that are mutated: no annotations, decorators, texts, or what an error says."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.keyword) and child.arg in GUARDS):
                yield child


def _lines(node: Any, statement: ast.stmt) -> tuple[int, int]:
    """Where a test has to come by to see a change: the whole statement, of a compound one its head up to the node."""
    if hasattr(statement, "body"):
        return min(statement.lineno, node.lineno), node.end_lineno
    return statement.lineno, statement.end_lineno or statement.lineno


def _joined(lines: list[str]) -> str:
    return " ".join(line.strip() for line in lines)


def mutants(module: str, source: str) -> list[Mutant]:
    """All mutants of a module, in the order of the source. module: its path, to be shown."""
    text, lines = source.encode(), source.splitlines()
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: dict[str, Mutant] = {}

    def visit(node: ast.AST, statement: ast.stmt) -> None:
        statement = node if isinstance(node, ast.stmt) else statement
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("TypeVar", "cast"):  # of types, not of what runs
            return
        for rule in RULES.get(type(node), ()):
            for kind, old, new in rule(node):
                add(kind, old, new, statement)
        for child in _inside(node):
            visit(child, statement)

    def add(kind: str, old: Any, new: ast.AST, statement: ast.stmt) -> None:
        was, now = ast.unparse(old), ast.unparse(new)
        first, last = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
        put = now if isinstance(new, ast.stmt | ast.Name | ast.Attribute) else f"({now})"
        changed = (text[:first] + put.encode() + text[last:]).decode()
        rows, rest = changed.splitlines(), len(lines) - old.end_lineno
        before, after = lines[old.lineno - 1 : old.end_lineno], rows[old.lineno - 1 : len(rows) - rest]
        mutant = Mutant(module, kind, _lines(old, statement), was, now, _joined(before), _joined(after), changed)
        found.setdefault(changed, mutant)

    for statement in ast.parse(source).body:
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            continue
        visit(statement, statement)
    return list(found.values())
