"""Which calls of a function get another call's result, and whether anyone else could see it."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .recognise import METHODS

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# What may stand between a statement and a call in it that runs exactly once, before any other call.
_STRAIGHT = (
    *(ast.Call, ast.BinOp, ast.UnaryOp, ast.Attribute, ast.keyword, ast.Tuple, ast.List, ast.Dict),
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.Expr, ast.Subscript, ast.Starred, ast.Compare),
)
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


@dataclass(frozen=True, eq=False)
class Loop:
    """`for layer in layers: x = layer(x)`."""

    node: ast.For
    variable: str


class Function:
    """A function's syntax tree, and where its values go.

    Attributes:
        nodes: the tree's nodes, in `ast.walk`'s order.
        parents: of each node.
        names: all names, wherever they stand.
        evaluates: it may read variables by other means than their names.
        declares: it says of names that they are another scope's.
        calls: in the order of their ends.
        links: between its calls.
        loops: those that call one module after the other.
    """

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.node = node
        self.nodes = list(ast.walk(node))
        self.parents = {child: parent for parent in self.nodes for child in ast.iter_child_nodes(parent)}
        self.names = [n for n in self.nodes if isinstance(n, ast.Name)]
        self.evaluates = any(n.id in _EVALUATORS for n in self.names)
        declarations = [n for n in self.nodes if isinstance(n, ast.Global | ast.Nonlocal)]
        self.declared = {name for n in declarations for name in n.names}
        self.declares = any(self._scope(n) is node for n in declarations)
        self.calls = sorted((n for n in self.nodes if isinstance(n, ast.Call)), key=_end)
        self.links = [link for call in self.calls for link in self._links(call)]
        self.loops = [loop for n in self.nodes if isinstance(n, ast.For) and (loop := self._loop(n))]

    def producer(self, call: ast.Call) -> ast.expr | None:
        """What is called for a call's input, if nothing else gets that; None if that isn't certain."""
        for first, problem in self._sources(call, argument(call)):
            return first.func if not problem else None
        return None

    def _links(self, second: ast.Call) -> Iterator[Link]:
        for first, problem in self._sources(second, argument(second)):
            yield Link(first, second, problem)

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
        uses = [n for n in self.names if n.id == name]
        stores = [n for n in uses if isinstance(n.ctx, ast.Store) and _end(n) < _start(statement)]
        stores = [n for n in stores if not self._are_apart(n, statement)]
        if not stores:
            return
        again = (
            self._is_shared(name, scope)
            or sum(n in uses and self._is_read(n) for n in ast.walk(statement)) > 1
            or _is_read_after(name, statement, self._around(statement))
        )
        before = self._before(statement)
        for first in dict.fromkeys([*before, self._statement(max(stores, key=_end))]):
            targets = first.targets if isinstance(first, ast.Assign) else [getattr(first, "target", None)]
            value = first.value if isinstance(first, ast.Assign | ast.AnnAssign) else None
            if not isinstance(targets[0], ast.Name) or name not in [getattr(t, "id", "") for t in targets]:
                continue
            straight = first in before and isinstance(user, ast.Call) and not isinstance(value, ast.Name)
            problem = "" if straight and self._comes_first(user, statement) else BETWEEN
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

    def _is_read(self, name: ast.Name) -> bool:
        return isinstance(name.ctx, ast.Load) or isinstance(self.parents[name], ast.AugAssign)

    def _around(self, statement: ast.stmt) -> list[ast.stmt]:
        """The body of the function that the statement stands in."""
        node = self._scope(statement)
        return node.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else [statement]

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

    def _before(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statements that may run right before it: the one above, or the last ones of an `if` there."""
        for _, block in ast.iter_fields(self.parents[statement]):
            if isinstance(block, list) and statement in block[1:]:
                return list(_last(block[block.index(statement) - 1]))
        return []

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
        others = [n for n in ast.walk(statement) if isinstance(n, ast.Call | ast.Await | ast.Yield)]
        return not any(n is not call and _end(n) <= _start(call) for n in others)

    def _loop(self, node: ast.For) -> Loop | None:
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
                if len(uses) == 2 and len(scopes) == 1 and not calls and not self.evaluates:
                    return Loop(node, target)
        return None


def argument(call: ast.Call) -> ast.expr | None:
    """What a call gets as its input; of a tensor's method, the tensor."""
    if call.args:
        return None if isinstance(call.args[0], ast.Starred) else call.args[0]
    if is_method(call):
        return call.func.value  # type: ignore[attr-defined]
    return next((keyword.value for keyword in call.keywords if keyword.arg == "input"), None)


def is_method(call: ast.Call) -> bool:
    """It may be a tensor's method that is an activation, as in `x.relu()`."""
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in METHODS
        and not call.args
        and not call.keywords
    )


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


# Liveness of one variable, backwards through the statements of a function ------------------------------


class _Jumps(NamedTuple):
    """Whether the variable is read after a jump out of a statement, by its kind."""

    breaks: bool = False
    continues: bool = False
    raises: bool = False
    returns: bool = False


class _Liveness:
    def __init__(self, name: str, statement: ast.stmt) -> None:
        self.name, self.statement, self.read = name, statement, False

    def block(self, statements: Sequence[ast.AST], live: bool, jumps: _Jumps) -> bool:
        """Whether the variable is live before the statements, if it is `live` after them."""
        for node in reversed(statements):
            if node is self.statement:
                self.read |= jumps.raises or (live and not self._sets(node))
            live = self._before(node, live, jumps) or jumps.raises
        return live

    def _before(self, node: ast.AST, live: bool, jumps: _Jumps) -> bool:
        match node:
            case ast.Return():
                return self._reads(node) or jumps.returns
            case ast.Raise():
                return self._reads(node) or jumps.raises
            case ast.Break():
                return jumps.breaks
            case ast.Continue():
                return jumps.continues
            case ast.If(test=test, body=body, orelse=orelse):
                branches = [self.block(body, live, jumps), self.block(orelse, live, jumps)]
                return self._reads(test) or any(branches)
            case ast.While(test=head, body=body, orelse=orelse):
                return self._loop(head, head, body, self.block(orelse, live, jumps), live, jumps)
            case (
                ast.For(target=target, iter=head, body=body, orelse=orelse)
                | ast.AsyncFor(target=target, iter=head, body=body, orelse=orelse)
            ):
                left = self._loop(target, None, body, self.block(orelse, live, jumps), live, jumps)
                return self._reads(head) or left
            case ast.With(items=items, body=body) | ast.AsyncWith(items=items, body=body):
                swallows = any("suppress" in ast.unparse(item) for item in items)
                inner = jumps._replace(raises=jumps.raises or (swallows and live))
                return self.block(body, live, inner) or any(self._reads(item) for item in items)
            case ast.Match(subject=subject, cases=cases):
                bodies = [self.block(case.body, live, jumps) for case in cases]
                return self._reads(subject) or live or any(bodies) or any(map(self._reads, cases))
            case ast.Try() | TryStar():
                return self._try(node, live, jumps)
        return self._reads(node) or (live and not self._sets(node))

    def _loop(
        self,
        target: ast.AST,
        test: ast.AST | None,
        body: list[ast.stmt],
        left: bool,
        live: bool,
        jumps: _Jumps,
    ) -> bool:
        head = left
        for _ in range(2):  # the second time with what the next round reads
            inside = jumps._replace(breaks=live, continues=head)
            entered = self.block(body, head, inside) and not (test is None and self._sets(target))
            head = left or entered or (test is not None and self._reads(test))
        return head

    def _try(self, node: Any, live: bool, jumps: _Jumps) -> bool:
        after = self.block(node.finalbody, live, jumps)
        # Every jump out of it goes through `finally`.
        left = _Jumps(*(self.block(node.finalbody, jump, jumps) for jump in jumps))
        handlers = [self.block(handler.body, after, left) for handler in node.handlers]
        caught = left.raises or any(handlers) or any(map(self._reads, node.handlers))
        within = left._replace(raises=caught)
        return self.block(node.body, self.block(node.orelse, after, left), within)

    def _reads(self, node: ast.AST) -> bool:
        return any(
            (isinstance(n, ast.Name) and n.id == self.name and isinstance(n.ctx, ast.Load))
            or (isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name) and n.target.id == self.name)
            for n in ast.walk(node)
        )

    def _sets(self, node: ast.AST) -> bool:
        return any(
            isinstance(n, ast.Name) and n.id == self.name and not isinstance(n.ctx, ast.Load)
            for n in ast.walk(node)
        )


TryStar: Any = getattr(ast, "TryStar", ast.Try)  # Python 3.11


def _is_read_after(name: str, statement: ast.stmt, body: list[ast.stmt]) -> bool:
    """Somebody may read what the variable held before `statement` when that has run, or failed."""
    liveness = _Liveness(name, statement)
    liveness.block(body, False, _Jumps())
    return liveness.read
