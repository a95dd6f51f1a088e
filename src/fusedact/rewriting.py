"""Classes with calls in their methods replaced, which take the place of a module's class."""

import __future__

import ast
import copy
import copyreg
import functools
import types
from typing import Any

from torch import nn

from .methods import Method, Methods, argument, contents

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
        method = Methods(original).own.get(name)
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


def changeable(method: Method) -> bool:
    """The class's attribute can be made anew with other code."""
    return _rewrap(method.attribute, method.function, method.function) is not None


def _rewrap(attribute: Any, old: types.FunctionType, new: types.FunctionType) -> types.FunctionType | None:
    """What decorators made of `old`, made of `new`; None if they don't simply hold it in a closure."""
    if attribute is old:
        return new
    inner = getattr(attribute, "__wrapped__", None)
    if not isinstance(attribute, types.FunctionType) or inner is None:
        return None
    changed = _rewrap(inner, old, new)
    cells = list(attribute.__closure__ or ())
    places = [i for i, cell in enumerate(cells) if contents(cell) is inner]
    if changed is None or len(places) != 1:
        return None
    # A decorator's function may also hold itself, to see whether it is the outermost.
    itself = [i for i, cell in enumerate(cells) if contents(cell) is attribute]
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
