"""The methods of a module's class, and their source, believed only if it compiles to the code that runs."""

import __future__

import ast
import functools
import inspect
import linecache
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

_FUTURE = functools.reduce(
    int.__or__, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
# Classes of PyTorch's that hold models, and of its tools: none calls an activation.
_TOOLS = ("torch._dynamo.", "torch.distributed.", "torch.nn.parallel.", "torch.nn.utils.", "torch.optim.")
# The code of functions that are rewritten, as it was.
originals: weakref.WeakKeyDictionary[types.FunctionType, types.CodeType] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Method:
    """A function that a class has, by whatever decorators around it, and its source.

    Attributes:
        owner: the class.
        name: its name there.
        function: the function itself, without decorators.
        node: its syntax tree; None where the source can't be read.
        within: the name of the class that the source stands in, which private names depend on.
        self: the name of its first parameter.
    """

    owner: type
    name: str
    function: types.FunctionType
    node: ast.FunctionDef | ast.AsyncFunctionDef | None
    within: str
    self: str

    @property
    def code(self) -> types.CodeType:
        """What the function's own source compiles to."""
        return originals.get(self.function, self.function.__code__)


def methods(cls: type) -> Iterator[Method]:
    """The methods of a module class that calls of its instances may reach."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner is nn.Module or not issubclass(owner, nn.Module) or owner.__module__.startswith(_TOOLS):
            continue
        found = [(name, attribute) for name, attribute in vars(owner).items() if name not in seen]
        for name, attribute in found:
            function = _function(name, attribute)
            # A base class's method of that name can be reached only if this one names it.
            if function is None or name not in _names(originals.get(function, function.__code__)):
                seen.add(name)
            if function is not None and not (name.startswith("__") and name != "__call__"):
                yield _method(owner, name, function)


def _names(code: types.CodeType) -> set[str]:
    """The names of globals and attributes in the code, nested code too."""
    nested = (_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*nested)


def names(method: Method) -> set[str]:
    """The names of globals and attributes that a method's code has."""
    return _names(method.code)


def _function(name: str, attribute: Any) -> types.FunctionType | None:
    """The function of that name below an attribute's decorators, or the attribute's own."""
    attribute = attribute.fget if isinstance(attribute, property) else attribute
    if isinstance(attribute, staticmethod | classmethod):
        return None
    queue, seen = [attribute], set()
    while queue:
        function = queue.pop(0)
        if id(function) in seen or not isinstance(function, types.FunctionType):
            continue
        seen.add(id(function))
        if originals.get(function, function.__code__).co_name == name:
            return function
        queue += [getattr(function, "__wrapped__", None), *map(contents, function.__closure__ or ())]
    return attribute if isinstance(attribute, types.FunctionType) else None


def contents(cell: types.CellType) -> Any:
    """What a closure has in a cell; None if there is nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:  # nothing in it yet
        return None


@functools.cache
def _method(owner: type, name: str, function: types.FunctionType) -> Method:
    code = originals.get(function, function.__code__)
    first = code.co_varnames[0] if code.co_argcount else ""
    method = Method(owner, name, function, None, "", first)
    for node, within in _file(code.co_filename).functions:
        first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        if node.name == code.co_name and first_line == code.co_firstlineno:
            candidate = Method(owner, name, function, node, within, first)
            if _same(compiled(candidate, node), code):
                return candidate
    return method


@dataclass(frozen=True, eq=False)
class _File:
    """A file's functions, each with the class that it stands in, and its imports."""

    functions: list[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]
    imports: list[ast.stmt]


@functools.lru_cache(maxsize=64)
def _file(filename: str) -> _File:
    file = _File([], [])

    def visit(node: ast.AST, within: str, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                file.functions.append((child, within))
                visit(child, within, False)
            elif isinstance(child, ast.ClassDef):
                visit(child, child.name, False)
            else:
                if top and isinstance(child, ast.Import | ast.ImportFrom):
                    file.imports.append(child)
                visit(child, within, top)

    try:
        visit(ast.parse("".join(linecache.getlines(filename))), "", True)
    except SyntaxError:
        pass
    return file


def compiled(method: Method, node: ast.FunctionDef | ast.AsyncFunctionDef) -> types.CodeType | None:
    """The code of `node` in the method's place: in its class, with the names of its closure around it."""
    code = method.code
    bare = type(node)(**{field: getattr(node, field, None) for field in node._fields})
    bare.decorator_list, bare.returns, bare.args = [], None, _without_annotations(node.args)
    body: list[ast.stmt] = [ast.copy_location(bare, node)]
    path = [node.name]
    if method.within:
        scope = ast.parse(f"class {method.within}: pass").body[0]
        body, scope.body, path = [scope], body, [method.within, *path]  # type: ignore[attr-defined]
    if code.co_flags & inspect.CO_NESTED:
        outer = ", ".join(name for name in code.co_freevars if name != "__class__")
        scope = ast.parse(f"def _({outer}): pass").body[0]
        body, scope.body, path = [scope], body, ["_", *path]  # type: ignore[attr-defined]
    # Attributes of names that the file imports compile to other code than those of other names.
    imports = [n for n in _file(code.co_filename).imports if getattr(n, "module", "") != "__future__"]
    tree = ast.Module([*imports, *body], [])
    try:
        nested = compile(tree, code.co_filename, "exec", flags=code.co_flags & _FUTURE, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    for name in path:
        inner = [c for c in nested.co_consts if isinstance(c, types.CodeType) and c.co_name == name]
        nested = inner[0]
    lines: dict[str, Any] = {"co_firstlineno": code.co_firstlineno}
    if hasattr(code, "co_qualname"):
        lines["co_qualname"] = code.co_qualname
    return nested.replace(**lines)


def _without_annotations(arguments: ast.arguments) -> ast.arguments:
    def plain(argument: ast.arg | None) -> ast.arg | None:
        return argument and ast.copy_location(ast.arg(argument.arg), argument)

    return ast.arguments(
        [plain(a) for a in arguments.posonlyargs],
        [plain(a) for a in arguments.args],
        plain(arguments.vararg),
        [plain(a) for a in arguments.kwonlyargs],
        arguments.kw_defaults,
        plain(arguments.kwarg),
        arguments.defaults,
    )


_COMPARED = (
    *("co_name", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags"),
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount"),
)


def _same(one: types.CodeType | None, other: types.CodeType) -> bool:
    """Both do the same, wherever their lines stand."""
    if one is None or any(getattr(one, name) != getattr(other, name) for name in _COMPARED):
        return False
    return len(one.co_consts) == len(other.co_consts) and all(
        _same(a, b) if isinstance(a, types.CodeType) and isinstance(b, types.CodeType) else _equal(a, b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )


def _equal(a: object, b: object) -> bool:
    return type(a) is type(b) and repr(a) == repr(b)  # 0.0 isn't -0.0, nor is nan another number


def find(cls: type, name: str) -> Method | None:
    """The method of that name that the class has itself."""
    function = _function(name, vars(cls).get(name))
    return function and _method(cls, name, function)
