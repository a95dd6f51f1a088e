"""Which calls of a function get another call's result, and whether anyone else could see it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .recognise import METHODS

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# What may stand between a statement and a call in it that runs exactly once, before any other call.
_STRAIGHT = (
    *(ast.Call, ast.BinOp, ast.UnaryOp, ast.Attribute, ast.keyword, ast.Tuple, ast.List, ast.Dict),
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.Expr, ast.Subscript, ast.Starred),
)
# What only names something, as in `self.layers[-1]`.
_NAMING = (ast.Name, ast.Attribute, ast.Subscript, ast.Constant, ast.UnaryOp, ast.USub, ast.Load)
_RUNNING = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)  # other code
_EVALUATORS = {"eval", "exec", "globals", "locals", "vars", "dir"}
AGAIN = "the result of the first is used again"
BETWEEN = "other code stands between the two"
KEPT = "the result of the first is kept where other code could see it"


@dataclass(frozen=True, eq=False)
class Link:
    """A call that gets another call's result.

    Attributes:
        first: the call that gives it.
        second: the call that gets it as its input.
        problem: why the first can't be put off until the second; empty if it can.
    """

    first: ast.Call
    second: ast.Call
    problem: str


class Function:
    """A function's syntax tree, and where its values go.

    Attributes:
        nodes: the tree's nodes, in `ast.walk`'s order.
        parents: of each node.
        names: all names, wherever they stand.
        variables: the names of its variables, and of those of functions in it.
        evaluates: it may read variables by other means than their names.
        declares: it says of names that they are another scope's.
        calls: in the order of their ends.
        links: between its calls.
        loops: of the kind `for layer in layers: x = layer(x)`.
    """

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.node = node
        self.nodes = list(ast.walk(node))
        self.parents = {child: parent for parent in self.nodes for child in ast.iter_child_nodes(parent)}
        self.names = [n for n in self.nodes if isinstance(n, ast.Name)]
        arguments = (n.arg for n in self.nodes if isinstance(n, ast.arg))
        self.variables = {n.id for n in self.names if not isinstance(n.ctx, ast.Load)}.union(arguments)
        self.evaluates = any(n.id in _EVALUATORS for n in self.names)
        declarations = [n for n in self.nodes if isinstance(n, ast.Global | ast.Nonlocal)]
        self.declared = {name for n in declarations for name in n.names}
        self.declares = any(self._scope(n) is node for n in declarations)
        self.calls = sorted((n for n in self.nodes if isinstance(n, ast.Call)), key=_end)
        self.links = [
            Link(first, call, problem or _between(call))
            for call in self.calls
            for first, problem in self._sources(call, argument(call))
        ]
        self.loops = [n for n in self.nodes if isinstance(n, ast.For) and self._is_chain(n)]

    def producer(self, call: ast.Call) -> ast.expr | None:
        """What is called for a call's input, if nothing else gets that; None if that isn't certain.

        It may be evaluated again.
        """
        value = argument(call)
        above = self._block(self._statement(call))[0]
        # Of what may stand in two branches, only one runs.
        certain = getattr(above[-1], "value", None) if above and isinstance(value, ast.Name) else value
        sources = [first for first, problem in self._sources(call, value) if first is certain and not problem]
        func = sources[0].func if sources else None
        return func if func is not None and all(isinstance(n, _NAMING) for n in ast.walk(func)) else None

    def _sources(self, user: ast.AST, value: ast.expr | None) -> Iterator[tuple[ast.Call, str]]:
        """The calls whose result is `value`, which `user` gets: a call, or a statement that renames it."""
        match value:
            case ast.Call():
                yield value, ""
            case ast.IfExp(body=body, orelse=orelse):
                yield from self._sources(user, body)
                yield from self._sources(user, orelse)
            case ast.NamedExpr(value=inner):
                yield from ((first, problem or AGAIN) for first, problem in self._sources(user, inner))
            case ast.Name(id=name):
                yield from self._assigned(user, value, name)
            case ast.Attribute():
                yield from self._kept(user, value)

    def _assigned(self, user: ast.AST, load: ast.Name, name: str) -> Iterator[tuple[ast.Call, str]]:
        """Where the variable `name` was set last before `user`."""
        scope, statement = self._scope(load), self._statement(user)
        stores = [n for n in self.names if n.id == name and isinstance(n.ctx, ast.Store)]
        stores = [n for n in stores if _end(n) < _start(statement) and not self._are_apart(n, statement)]
        if not stores:
            return
        again = (
            self._is_shared(name, scope)
            or self._reads(statement, name) > 1
            or self._is_read_after(name, statement)
        )
        # Right before it runs the statement above, or one of the last ones of an `if` there.
        before = [last for above in self._block(statement)[0][-1:] for last in _last(above)]
        for first in dict.fromkeys([*before, self._statement(max(stores, key=_end))]):
            targets = first.targets if isinstance(first, ast.Assign) else [getattr(first, "target", None)]
            value = first.value if isinstance(first, ast.Assign | ast.AnnAssign) else None
            if not isinstance(targets[0], ast.Name) or name not in [getattr(t, "id", "") for t in targets]:
                continue
            straight = first in before and isinstance(user, ast.Call) and not isinstance(value, ast.Name)
            problem = "" if straight and self._comes_first(user, statement) else BETWEEN  # type: ignore[arg-type]
            if again or len(targets) > 1 or self._scope(first) is not scope:
                problem = AGAIN
            yield from ((call, inner or problem) for call, inner in self._sources(first, value))

    def _kept(self, user: ast.AST, load: ast.Attribute) -> Iterator[tuple[ast.Call, str]]:
        """The same for an attribute, which others can read at any time."""
        for n in self.nodes:
            if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call) and _end(n) < _start(user):
                kept = [ast.unparse(t) for t in n.targets if isinstance(t, ast.Attribute)]
                if ast.unparse(load) in kept:
                    yield n.value, KEPT

    def _reads(self, node: ast.AST, name: str) -> int:
        """How often the code of `node` reads the variable."""
        found = [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name]
        return sum(isinstance(n.ctx, ast.Load) or isinstance(self.parents[n], ast.AugAssign) for n in found)

    def _is_read_after(self, name: str, statement: ast.stmt) -> bool:
        """When `statement` has run, or failed, someone may read what the variable held before it."""
        once = self._reads(self._scope(statement), name) == 1
        if once or isinstance(statement, ast.Return) or _sets(statement, name):
            return self._is_rescued(name, statement)
        node: ast.AST = statement
        while not isinstance(node, _SCOPES):
            for later in self._block(node)[1]:
                if self._reads(later, name):
                    return True
                if _sets(later, name) or isinstance(later, ast.Return | ast.Raise):
                    return self._is_rescued(name, statement)
            node = self.parents[node]
            if isinstance(node, ast.For | ast.AsyncFor | ast.While | ast.Try):
                return True  # where it goes on isn't followed
        return False

    def _is_rescued(self, name: str, statement: ast.stmt) -> bool:
        """A handler or `finally` around the statement reads the variable."""
        node: ast.AST = statement
        while not isinstance(node, _SCOPES):
            node = self.parents[node]
            after = [*getattr(node, "handlers", ()), *getattr(node, "finalbody", ())]
            if any(self._reads(each, name) for each in after):
                return True
        return False

    def _block(self, node: ast.AST) -> tuple[list[ast.stmt], list[ast.stmt]]:
        """What stands before and after a statement in its block."""
        for _, block in ast.iter_fields(self.parents[node]):
            if isinstance(block, list) and node in block:
                i = block.index(node)
                return block[:i], block[i + 1 :]
        return [], []

    def _is_shared(self, name: str, scope: ast.AST) -> bool:
        """Other scopes may read the variable, or code that is made at run time."""
        others = any(n.id == name and self._scope(n) is not scope for n in self.names)
        return others or self.evaluates or name in self.declared

    def _scope(self, node: ast.AST) -> ast.AST:
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, _SCOPES):
                return node
        return self.node

    def _statement(self, node: ast.AST) -> ast.stmt:
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        return node

    def _are_apart(self, one: ast.AST, other: ast.AST) -> bool:
        """They stand in the two branches of an `if`."""
        ways = []
        for node in (one, other):
            way = {}
            while node in self.parents:
                parent = self.parents[node]
                if isinstance(parent, ast.If):
                    way[parent] = node in parent.body
                node = parent
            ways.append(way)
        return any(way != ways[1].get(branch, way) for branch, way in ways[0].items())

    def _comes_first(self, call: ast.Call, statement: ast.stmt) -> bool:
        """`statement` runs `call` exactly once, and no call before it."""
        node: ast.AST = call
        while node is not statement:
            node = self.parents[node]
            if not isinstance(node, _STRAIGHT):
                return False
        others = [n for n in ast.walk(statement) if isinstance(n, _RUNNING)]
        return not any(n is not call and _end(n) <= _start(call) for n in others)

    def _is_chain(self, node: ast.For) -> bool:
        match node:
            case ast.For(
                target=ast.Name(id=layer),
                body=[
                    ast.Assign(
                        targets=[ast.Name(id=target)],
                        value=ast.Call(func=ast.Name(id=called), args=[ast.Name(id=given)], keywords=[]),
                    )
                ],
                orelse=[],
            ) if called == layer and target == given != layer:
                uses = [n for n in self.names if n.id == layer]
                scopes = {self._scope(n) for n in self.names if n.id in (layer, target)}
                calls = any(isinstance(n, ast.Call) for n in ast.walk(node.iter))
                return len(uses) == 2 and len(scopes) == 1 and not calls and not self.evaluates
        return False


def argument(call: ast.Call) -> ast.expr | None:
    """What a call gets as its input; of a tensor's method, the tensor."""
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    if is_method(call):
        return call.func.value  # type: ignore[attr-defined,no-any-return]
    return next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)


def _between(call: ast.Call) -> str:
    """What its function and other arguments do before it runs, when its input is there; empty for nothing."""
    given = argument(call)
    inside = [*call.args, *(keyword.value for keyword in call.keywords)]
    inside += [call.func] if isinstance(given, ast.Name) and not is_method(call) else []
    runs = (isinstance(n, _RUNNING) for each in inside if each is not given for n in ast.walk(each))
    return BETWEEN if any(runs) else ""


def is_method(call: ast.Call) -> bool:
    """It may be a tensor's method that is an activation, as in `x.relu()`."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in METHODS
        and not call.args
        and not call.keywords
    )


def _sets(statement: ast.stmt, name: str) -> bool:
    """It sets the variable, or deletes it, whatever happens."""
    simple = isinstance(statement, ast.Assign | ast.AnnAssign | ast.Delete)
    names = [n for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id == name]
    return simple and any(not isinstance(n.ctx, ast.Load) for n in names)


def _last(statement: ast.stmt) -> Iterator[ast.stmt]:
    """The statements of which one ran last when `statement` has run."""
    if isinstance(statement, ast.If):
        for branch in (statement.body, statement.orelse):
            yield from _last(branch[-1]) if branch else ()
    else:
        yield statement


def _start(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def _end(node: ast.AST) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
