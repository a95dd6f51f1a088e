"""Methods as source: reading what a class's methods say, and classes with calls in them replaced.

`fusedact.fuse` finds pairs in source, not in a trace: source shows every branch, needs no example
input, and what isn't replaced runs on as it was written. Source is believed only if it compiles to
the very bytecode that runs.
"""

import __future__

import ast
import collections
import copy
import copyreg
import functools
import inspect
import linecache
import types
import zlib
from collections.abc import Iterator
from typing import Any

from torch import nn

MISSING: Any = object()

# What may stand between a statement and a call in it that runs exactly once, before any other call.
_STRAIGHT = (ast.Call, ast.BinOp, ast.Attribute, ast.keyword, ast.Tuple, ast.Assign, ast.Return)
_SCOPES = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.Lambda,
    ast.GeneratorExp,
    ast.Try,
    ast.Global,
    ast.Nonlocal,
)
_ITERATORS = {"enumerate", "iter", "list", "reversed", "tuple", "zip"}
_ANYTHING = {"eval", "exec", "locals", "setattr", "vars"}
# Not `modules`, which gives the module itself too: code that calls what it gives is no forward.
_CHILDREN = {"_modules", "children", "named_children"}


class Method:
    """A method and its source.

    Attributes:
        name: the attribute of the class.
        attribute: what the class has under that name.
        function: the function, without decorators.
        changeable: the class's attribute can be made anew with other code.
        owner: the name of the class that it stands in.
        node: its syntax tree.
        self: the name of its first parameter; empty if that is not what it says throughout.
        nodes: `node` and all below it, in `ast.walk`'s order.
        calls: its calls, in the order of their ends.
        loads: how often it reads each attribute of `self`.
        stores: attributes that it assigns.
        foreign: attributes that it reads of anything but `self` and Python modules.
        handed: attributes of `self` that it does more with than call them: index, iterate, rename.
        foreign_handed: the same of `foreign`.
        dynamic: it looks attributes or children up by other means than their names.
    """

    def __init__(
        self, name: str, attribute: Any, function: types.FunctionType, owner: str, node: ast.FunctionDef
    ) -> None:
        self.name, self.attribute, self.function = name, attribute, function
        self.changeable = _rewrap(attribute, function, function) is not None
        self.owner, self.node = owner, node
        self.nodes = list(ast.walk(node))
        self.calls = sorted((n for n in self.nodes if isinstance(n, ast.Call)), key=_end)
        self.parents = {child: parent for parent in self.nodes for child in ast.iter_child_nodes(parent)}
        self.nested = any(isinstance(n, _SCOPES) for n in self.nodes if n is not node)
        bound = collections.Counter(name for n in self.nodes if n is not node for name in _binds(n))
        self.locals = set(bound)
        parameters = [*node.args.posonlyargs, *node.args.args]
        self.self = parameters[0].arg if parameters and bound[parameters[0].arg] == 1 else ""
        self.cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self.loads: collections.Counter[str] = collections.Counter()
        self.stores: set[str] = set()
        self.foreign: set[str] = set()
        self.handed: set[str] = set()
        self.foreign_handed: set[str] = set()
        self.dynamic = False
        for n in self.nodes:
            self._note(n)

    def _note(self, node: ast.AST) -> None:
        if isinstance(node, ast.Attribute) and not _is_load(node):
            self.stores.add(node.attr)
        elif isinstance(node, ast.Attribute):
            self._note_read(node.value, node.attr, self._only_called(node))
        elif isinstance(node, ast.Name) and node.id == "getattr":
            match self.parents[node]:
                case ast.Call(args=[base, ast.Constant(value=str(name)), *_]):
                    self._note_read(base, name, False)
                case _:
                    self.dynamic = True
        elif isinstance(node, ast.Name) and node.id in _ANYTHING:
            self.dynamic = True

    def _note_read(self, base: ast.expr, name: str, only_called: bool) -> None:
        if self.is_self(base):
            self.loads[name] += 1
            self.dynamic |= name in _CHILDREN
            if not only_called:
                self.handed.add(name)
        elif not isinstance(self.resolve(base), types.ModuleType):
            self.foreign.add(name)
            if not only_called:
                self.foreign_handed.add(name)

    def _only_called(self, node: ast.Attribute) -> bool:
        parent = self.parents[node]
        if isinstance(parent, ast.Call) and node is not parent.func:
            return not (isinstance(parent.func, ast.Name) and parent.func.id in _ITERATORS)
        return isinstance(parent, ast.Call | ast.Compare | ast.BoolOp | ast.If | ast.IfExp | ast.UnaryOp)

    def is_self(self, node: ast.AST) -> bool:
        """Whether an expression is the name of the method's `self`."""
        return isinstance(node, ast.Name) and node.id == self.self

    def resolve(self, node: ast.AST, module: nn.Module | None = None) -> Any:
        """What an expression of names and dots stands for when `self` is `module`; else MISSING."""
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value, module)
            if isinstance(base, types.ModuleType):
                return getattr(base, node.attr, MISSING)
            # Of anything else only what the instance itself holds: a property runs code.
            held = getattr(base, "__dict__", {})
            return held.get(node.attr, held.get("_modules", {}).get(node.attr, MISSING))
        if not isinstance(node, ast.Name):
            return MISSING
        if self.is_self(node):
            return MISSING if module is None else module
        if node.id in self.locals:
            return MISSING
        if node.id in self.cells:
            return _contents(self.cells[node.id])
        return self.function.__globals__.get(node.id, MISSING)

    def assigned_before(self, call: ast.Call, name: str) -> tuple[ast.expr | None, str]:
        """The expression whose value `call` gets in the variable `name`; and a reason.

        The reason says why the two might not run one right after the other with the value gone
        thereafter; it is empty if that is certain.
        """
        uses = [n for n in self.nodes if isinstance(n, ast.Name) and n.id == name]
        before = [n for n in uses if not _is_load(n) and _end(n) < _end(call)]
        names = [n for n in before if self.parents[n] is not self._statement(call)]
        if not names:
            return None, ""
        first = self.parents[max(names, key=_end)]
        if not (isinstance(first, ast.Assign) and len(first.targets) == 1):
            return None, ""
        statement = self._statement(call)
        loads = [n for n in uses if _is_load(n) or isinstance(self.parents[n], ast.AugAssign)]
        here = [n for n in ast.walk(statement) if n in loads]
        rebound = isinstance(statement, ast.Assign) and any(t in uses for t in statement.targets)
        # Nothing but a nested function or a `finally` can read a variable after `return`.
        returned = isinstance(statement, ast.Return) and not self.nested
        if len(here) > 1 or not (rebound or returned or len(loads) == 1):
            return first.value, "the result of the first is used again"
        if self._previous(statement) is not first or not self._comes_first(call, statement):
            return first.value, "other code stands between the two"
        return first.value, ""

    def previous(self, node: ast.AST) -> ast.stmt | None:
        """The statement before that of `node`, in the same block."""
        return self._previous(self._statement(node))

    def _statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def _previous(self, statement: ast.stmt) -> ast.stmt | None:
        parent = self.parents[statement]
        for field in ("body", "orelse", "finalbody"):
            block = getattr(parent, field, None)
            if isinstance(block, list) and statement in block[1:]:
                before: ast.stmt = block[block.index(statement) - 1]
                return before
        return None

    def _comes_first(self, call: ast.Call, statement: ast.stmt) -> bool:
        """`statement` runs `call` exactly once, and no call before it."""
        node: ast.AST = call
        while node is not statement:
            node = self.parents[node]
            if not isinstance(node, _STRAIGHT):
                return False
        return not any(
            n is not call and _end(n) <= _start(call) for n in ast.walk(statement) if isinstance(n, ast.Call)
        )

    def checksum(self) -> int:
        """A number for what the source says, whatever its layout and comments."""
        return zlib.crc32(ast.dump(self.node).encode())


def argument(call: ast.Call) -> ast.expr | None:
    """What a call gets as its input."""
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    return next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)


def methods(cls: type) -> tuple[dict[str, Method], dict[str, Method], list[str]]:
    """A module class's methods but those that set it up, down to `nn.Module`.

    Returns:
        Those found by their name; those of base classes that others call by `super()`; and the names of
        those without source.
    """
    own: dict[str, Method] = {}
    base: dict[str, Method] = {}
    unreadable: list[str] = []
    for owner in cls.__mro__:
        if owner is nn.Module or owner.__module__ == "torch.nn.modules.container":
            break
        for name, value in vars(owner).items():
            getter = value.fget if isinstance(value, property) else value
            if (
                name in ("__init__", "__setstate__")
                or not callable(getter)
                or isinstance(value, staticmethod | classmethod)
            ):
                continue
            function = inspect.unwrap(getter)
            if not isinstance(function, types.FunctionType):
                continue
            method = None
            # A decorator's inner function says nothing about the method that it hides.
            if "<locals>" not in function.__qualname__.removeprefix(owner.__qualname__):
                method = _read(name, value, function)
            if method is None:
                unreadable.append(name)
            elif name not in own:
                own[name] = method
            else:
                base[f"{owner.__qualname__}.{name}"] = method
    called = {name for method in own.values() for name in method.foreign}
    return own, {key: method for key, method in base.items() if method.name in called}, unreadable


def every(cls: type) -> Iterator[Method]:
    """All that `methods` finds: those by name, then those called by `super()`."""
    own, base, _ = methods(cls)
    yield from own.values()
    yield from base.values()


@functools.lru_cache(maxsize=4096)
def _read(name: str, attribute: Any, function: types.FunctionType) -> Method | None:
    """The method that decorators made `attribute` of; None unless its source is what runs."""
    code = function.__code__
    linecache.checkcache(code.co_filename)
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    owner, node, compiled = _definitions(text).get((code.co_firstlineno, code.co_name), ("", None, None))
    if node is None or compiled is None or not _same(compiled, code):
        return None
    node = copy.copy(node)
    node.decorator_list = []
    return Method(name, attribute, function, owner, node)


@functools.lru_cache(maxsize=256)
def _definitions(text: str) -> dict[tuple[int, str], tuple[str, ast.FunctionDef, types.CodeType | None]]:
    """A file's functions by first line and name: the class each stands in, its syntax tree, its code."""
    found: dict[tuple[int, str], tuple[str, ast.FunctionDef, types.CodeType | None]] = {}
    codes: dict[tuple[int, str], types.CodeType] = {}

    def collect(code: types.CodeType) -> None:
        codes[code.co_firstlineno, code.co_name] = code
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                collect(constant)

    def visit(parent: ast.AST, owner: str) -> None:
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef):
                first = node.decorator_list[0] if node.decorator_list else node
                key = first.lineno, node.name
                found[key] = owner, node, codes.get(key)
            if isinstance(node, ast.stmt | ast.ExceptHandler):
                visit(node, node.name if isinstance(node, ast.ClassDef) else owner)

    try:
        # The whole of it: a function's bytecode depends on what the module imports.
        tree = ast.parse(text)
        collect(compile(text, "", "exec", dont_inherit=True))
    except (SyntaxError, ValueError):  # no Python: a cell of a notebook with magic commands, say
        return {}
    visit(tree, "_")
    return found


def _compile(function: types.FunctionType, owner: str, node: ast.FunctionDef) -> types.CodeType:
    """The code of `node` in `function`'s place: in its class, with its closure's names around it."""
    names = ", ".join(name for name in function.__code__.co_freevars if name != "__class__")
    tree = ast.parse(f"def _({names}):\n class {owner}:\n  pass")
    tree.body[0].body[0].body = [node]  # type: ignore[attr-defined]
    flags = function.__code__.co_flags & __future__.annotations.compiler_flag
    code: types.CodeType = compile(
        tree, function.__code__.co_filename, "exec", flags=flags, dont_inherit=True
    )
    for name in ["_", owner, node.name]:
        code = next(c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return code


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    names = ("co_code", "co_names", "co_varnames", "co_freevars")
    return (
        all(getattr(a, name) == getattr(b, name) for name in names)
        and len(a.co_consts) == len(b.co_consts)
        and all(
            _same(x, y)
            if isinstance(x, types.CodeType) and isinstance(y, types.CodeType)
            else repr(x) == repr(y)
            for x, y in zip(a.co_consts, b.co_consts, strict=True)
        )
    )


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return MISSING


def _binds(node: ast.AST) -> list[str]:
    """The names that a node makes local."""
    if isinstance(node, ast.Name):
        return [] if _is_load(node) else [node.id]
    if isinstance(node, ast.arg):
        return [node.arg]
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).split(".")[0]]
    if isinstance(node, ast.ExceptHandler | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name] if node.name else []
    return []


def _is_load(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Load)


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


# Of a method: its name, its checksum, and (first call, second call, attribute) of each pair, calls by
# their place in `Method.nodes`.
Edits = tuple[tuple[str, int, tuple[tuple[int, int, str], ...]], ...]


class Rewritten(nn.Module):
    """Stands before a module's class in the class that takes its place, as with parametrizations."""

    __slots__ = ()  # the same layout, so that `__class__` can be assigned
    original: type
    edits: Edits

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Hides the original class's own, which may enter every new class into a register."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        make, arguments, *state = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            make, arguments = _new, (self.original, self.edits, *arguments[1:])
        return make, arguments, *state


def _new(original: type, edits: Edits, *arguments: Any) -> Any:
    cls = rewritten(original, edits)
    return cls.__new__(cls, *arguments)


@functools.cache
def rewritten(original: type, edits: Edits) -> type:
    """`original` with pairs of calls made one: `second(first(x))` becomes `self.attribute(x)`.

    Raises:
        RuntimeError: its source is not the one that `edits` were made for.
    """
    namespace: dict[str, Any] = {
        "original": original,
        "edits": edits,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    for name, checksum, pairs in edits:
        method = methods(original)[0].get(name)
        if method is None or method.checksum() != checksum:
            raise RuntimeError(
                f"{original.__qualname__}.{name} is not what it was when the model was fused and stored; "
                "fuse a new model and load the state_dict, or unfuse the model before it is stored"
            )
        namespace[name] = _rewrap(method.attribute, method.function, _edited(method, pairs))
    return type(original)(original.__name__, (Rewritten, original), namespace)


def _edited(method: Method, pairs: tuple[tuple[int, int, str], ...]) -> types.FunctionType:
    node = copy.deepcopy(method.node)
    nodes = list(ast.walk(node))
    firsts = {nodes[first] for first, _, _ in pairs}
    seconds = {nodes[second]: attribute for _, second, attribute in pairs}

    class Edit(ast.NodeTransformer):
        def visit_Call(self, call: ast.Call) -> ast.AST:
            self.generic_visit(call)
            value = argument(call)
            if call in firsts and value is not None:
                return value
            if call in seconds and value is not None:
                callee = ast.Attribute(ast.Name(method.self, ast.Load()), seconds[call], ast.Load())
                return ast.fix_missing_locations(ast.copy_location(ast.Call(callee, [value], []), call))
            return call

    Edit().visit(node)
    old = method.function
    code = _compile(old, method.owner, node)
    closure = tuple(method.cells[name] for name in code.co_freevars)
    return _like(old, code, closure)


def _rewrap(attribute: Any, old: types.FunctionType, new: types.FunctionType) -> types.FunctionType | None:
    """What decorators made of `old`, made of `new`; None if they don't simply hold it in a closure."""
    if attribute is old:
        return new
    inner = getattr(attribute, "__wrapped__", None)
    if not isinstance(attribute, types.FunctionType) or inner is None:
        return None
    changed = _rewrap(inner, old, new)
    cells = list(attribute.__closure__ or ())
    places = [i for i, cell in enumerate(cells) if _contents(cell) is inner]
    if changed is None or len(places) != 1:
        return None
    # A decorator's function may also hold itself, to see whether it is the outermost.
    itself = [i for i, cell in enumerate(cells) if _contents(cell) is attribute]
    cells[places[0]] = types.CellType(changed)
    for i in itself:
        cells[i] = types.CellType()
    wrapper = _like(attribute, attribute.__code__, tuple(cells))
    for i in itself:
        cells[i].cell_contents = wrapper
    wrapper.__wrapped__ = changed  # type: ignore[attr-defined]
    return wrapper


def _like(
    old: types.FunctionType, code: types.CodeType, closure: tuple[types.CellType, ...]
) -> types.FunctionType:
    """`old` with other code."""
    new = types.FunctionType(code, old.__globals__, old.__name__, old.__defaults__, closure)
    new.__kwdefaults__ = old.__kwdefaults__
    functools.update_wrapper(new, old)
    del new.__wrapped__  # type: ignore[attr-defined]
    return new
