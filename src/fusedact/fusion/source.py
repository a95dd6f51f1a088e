"""The methods of a module's class, and their source, believed only if it compiles to the code that runs."""

import ast
import functools
import linecache
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Definition = ast.FunctionDef | ast.AsyncFunctionDef
# Classes of PyTorch's tools around models: none calls an activation.
_TOOLS = ("torch._dynamo.", "torch.distributed.", "torch.nn.parallel.", "torch.nn.utils.", "torch.optim.")
LOCK = threading.RLock()  # of syntax trees, which change while they are compiled, and of functions' code
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
        self: the name of its first parameter.
    """

    owner: type
    name: str
    function: types.FunctionType
    node: Definition | None
    self: str

    @property
    def names(self) -> set[str]:
        """The names of globals and attributes in its code."""
        return _names(_code(self.function))


def methods(cls: type) -> Iterator[Method]:
    """The methods of a module class that calls of its instances may reach."""
    hidden: set[str] = set()
    for owner in cls.__mro__:
        if owner is nn.Module or not issubclass(owner, nn.Module) or owner.__module__.startswith(_TOOLS):
            continue
        for name in [name for name in vars(owner) if name not in hidden]:
            method = None if name.startswith("__") and name != "__call__" else find(owner, name)
            # A base class's method of that name is reached only if this one names it.
            if method is None or name not in method.names:
                hidden.add(name)
            if method is not None:
                yield method


def find(cls: type, name: str) -> Method | None:
    """The method of that name that the class has itself."""
    attribute = vars(cls).get(name)
    attribute = attribute.fget if isinstance(attribute, property) else attribute
    if not isinstance(attribute, types.FunctionType):
        return None
    queue: list[Any] = [attribute]
    for function in queue:  # down through decorators
        if _code(function).co_name == name:
            return _method(cls, name, function)
        inner = [getattr(function, "__wrapped__", None), *map(contents, function.__closure__ or ())]
        queue += [f for f in inner if isinstance(f, types.FunctionType) and f not in queue]
    return _method(cls, name, attribute)


def contents(cell: types.CellType) -> Any:
    """What a closure has in a cell; None if there is nothing yet."""
    with suppress(ValueError):
        return cell.cell_contents


def _code(function: types.FunctionType) -> types.CodeType:
    return originals.get(function, function.__code__)


def _names(code: types.CodeType) -> set[str]:
    nested = (_names(const) for const in code.co_consts if isinstance(const, types.CodeType))
    return set(code.co_names).union(*nested)


@functools.cache
def _method(owner: type, name: str, function: types.FunctionType) -> Method:
    code = _code(function)
    node = _file(code.co_filename).definitions.get(code)
    return Method(owner, name, function, node, code.co_varnames[0] if code.co_argcount else "")


# Files ---------------------------------------------------------------------------------------------------


@dataclass
class _File:
    """A file's syntax tree, and its functions by the code that they compile to."""

    tree: ast.Module
    definitions: dict[types.CodeType, Definition] = field(default_factory=dict)


@functools.lru_cache(maxsize=64)
def _file(filename: str) -> _File:
    try:
        file = _File(ast.parse("".join(linecache.getlines(filename))))
        codes = {_place(code): code for code in _codes(_compile(file.tree, filename))}
    except (SyntaxError, ValueError):
        return _File(ast.Module([], []))
    for node in ast.walk(file.tree):
        if isinstance(node, Definition):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if (node.name, first) in codes:
                file.definitions[codes[node.name, first]] = node
    return file


def _compile(tree: ast.Module, filename: str) -> types.CodeType:
    code: types.CodeType = compile(tree, filename, "exec", dont_inherit=True)
    return code


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _place(code: types.CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def compiled(method: Method, body: list[ast.stmt]) -> types.CodeType | None:
    """The method's code with another body, in the same place in the same file; None if that has a closure."""
    code, node = _code(method.function), method.node
    assert node is not None
    written, node.body = node.body, body
    try:
        found = _codes(_compile(_file(code.co_filename).tree, code.co_filename))
        new = next(each for each in found if _place(each) == _place(code))
    finally:
        node.body = written
    return new if new.co_freevars == code.co_freevars else None
