"""Which calls of a function get another call's result, and whether anyone else could see it.

Two forms are followed: `drop(act(x))`, and `h = act(x)` with `drop(h)` in the statement right below it.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from .recognise import METHODS

_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_SCOPES = (*_FUNCTIONS, ast.ClassDef, *_COMPREHENSIONS)
# What may stand between a statement and a call in it that runs exactly once, before any other call.
_STRAIGHT = (
    *(ast.Call, ast.BinOp, ast.UnaryOp, ast.Attribute, ast.keyword, ast.Tuple, ast.List, ast.Dict),
    *(ast.Assign, ast.AnnAssign, ast.Return, ast.Expr, ast.Subscript, ast.Starred),
)
_RUNNING = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom, *_COMPREHENSIONS)  # other code
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
        names: all names in its body.
        variables: the names of its variables, and of those of functions in it.
        evaluates: it may read variables by other means than their names.
        declared: the names that it says are another scope's.
        declares: it says so itself, and not only a function in it.
        calls: in its body, in the order of their ends.
        links: between its calls.
        outer: the calls that get its input as it is, and those whose results it may return.
        loops: of the kind `for layer in layers: x = layer(x)`.
    """

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.nodes = list(ast.walk(node))
        self._parents = {child: parent for parent in self.nodes for child in ast.iter_child_nodes(parent)}
        body = [n for statement in node.body for n in ast.walk(statement)]  # without decorators and defaults
        # By statement, the statements of its block.
        fields = (each for parent in [node, *body] for _, each in ast.iter_fields(parent))
        blocks = [block for block in fields if isinstance(block, list)]
        self._blocks = {each: block for block in blocks for each in block if isinstance(each, ast.stmt)}
        rescues = (part for n in body for part in (*getattr(n, "handlers", ()), *getattr(n, "finalbody", ())))
        self._rescues = {n for part in rescues for n in ast.walk(part)}  # run when a statement has failed
        self.names = [n for n in body if isinstance(n, ast.Name)]
        arguments = (n.arg for n in self.nodes if isinstance(n, ast.arg))
        self.variables = {n.id for n in self.names if not _is_read(n)}.union(arguments)
        self.evaluates = any(n.id in _EVALUATORS for n in self.names)
        declarations = [n for n in body if isinstance(n, ast.Global | ast.Nonlocal)]
        self.declared = {name for n in declarations for name in n.names}
        self.declares = any(self._scope(n) is node for n in declarations)
        self.calls = sorted((n for n in body if isinstance(n, ast.Call)), key=_end)
        self.links = [
            Link(first, call, problem or _between(call))
            for call in self.calls
            for first, problem in self._sources(call, argument(call))
        ]
        given = [n.arg for n in node.args.args[1:2]]
        received = [n for n in self.calls if getattr(argument(n), "id", None) in given]
        returns = [n for n in body if isinstance(n, ast.Return) and self._scope(n) is node]
        returned = [call for n in returns for call, _ in self._sources(n, n.value)]
        self.outer = received[:1], returned
        loops = [n for n in body if isinstance(n, ast.For) and self._is_chain(n)]
        variables = [n.target.id for n in loops]  # type: ignore[attr-defined]
        # Nobody else reads what a loop's variable holds, which it has twice.
        names = [n.id for n in self.names]
        alone = [2 * variables.count(name) == names.count(name) for name in variables]
        self.loops = [loop for loop, is_alone in zip(loops, alone, strict=True) if is_alone]

    def _sources(self, user: ast.AST, value: ast.expr | None) -> Iterator[tuple[ast.Call, str]]:
        """The calls whose result is `value`, which `user` gets: a call, or a statement."""
        match value:
            case ast.Call():
                yield value, ""
            case ast.IfExp(body=body, orelse=orelse):
                for each in (body, orelse):  # the condition runs before a call, but after what has a name
                    between = "" if isinstance(each, ast.Call) else BETWEEN
                    yield from ((call, inner or between) for call, inner in self._sources(user, each))
            case ast.NamedExpr(value=inner):
                yield from ((call, AGAIN) for call, _ in self._sources(user, inner))
            case ast.Name(id=name):
                yield from self._assigned(user, name)
            case ast.Attribute():
                stores = (n for n in self.nodes if isinstance(n, ast.Assign) and _end(n) < _start(user))
                for n in stores:
                    if isinstance(n.value, ast.Call) and ast.unparse(value) in map(ast.unparse, n.targets):
                        yield n.value, KEPT

    def _assigned(self, user: ast.AST, name: str) -> Iterator[tuple[ast.Call, str]]:
        """The calls whose result the variable may hold when `user` reads it."""
        statement = self.statement(user)
        block = self._blocks[statement]
        above = block[block.index(statement) - 1] if statement is not block[0] else None
        setting = {self.statement(n) for n in self.names if n.id == name and not _is_read(n)}
        for store in sorted(setting, key=_end, reverse=True):
            meeting = self._meeting(store, statement)
            if meeting is None:
                continue
            targets = store.targets if isinstance(store, ast.Assign) else [getattr(store, "target", None)]
            value = store.value if isinstance(store, ast.Assign | ast.AnnAssign) else None
            if value is not None and name in (getattr(target, "id", None) for target in targets):
                near = store is above and isinstance(value, ast.Call | ast.IfExp)
                problem = "" if near and self._comes_first(user, statement) else BETWEEN
                if len(targets) > 1 or self._is_used_again(name, statement):
                    problem = AGAIN
                yield from ((call, inner or problem) for call, inner in self._sources(store, value))
            if meeting is self._blocks[store]:
                return  # what was set before it is gone

    def _meeting(self, store: ast.stmt, statement: ast.stmt) -> list[ast.stmt] | None:
        """The innermost block around both, if `store` may run before `statement` there."""
        stores = {id(self._blocks[each]): each for each in self._statements(store)}
        around = (each for each in self._statements(statement) if id(self._blocks[each]) in stores)
        block = self._blocks[each := next(around)]
        return block if _end(stores[id(block)]) < _start(each) else None

    def _is_used_again(self, name: str, statement: ast.stmt) -> bool:
        """More may read what the variable holds when `statement` begins than one look in that."""
        uses = [n for n in self.names if n.id == name]
        scopes = {self._scope(n) for n in uses}
        shared = len(scopes) > 1 or any(isinstance(scope, ast.ClassDef) for scope in scopes)
        if self.evaluates or name in self.declared or shared:
            return True
        loops = (
            each
            for each in self._statements(statement)
            if isinstance(each, ast.For | ast.AsyncFor | ast.While)
        )
        rounds = {n for loop in loops for n in ast.walk(loop)}
        last, inside = isinstance(statement, ast.Return) or _sets(statement, name), set(ast.walk(statement))
        reads = [n for n in uses if _is_read(n) or isinstance(self._parents[n], ast.AugAssign)]
        later = [
            n in self._rescues or (not last and (n in rounds or _start(n) > _end(statement)))
            for n in reads
            if n not in inside
        ]
        return any(later) or len(reads) - len(later) > 1

    def _scope(self, node: ast.AST) -> ast.AST:
        while not isinstance(node := self._parents[node], _SCOPES):
            pass
        return node

    def _statements(self, node: ast.AST) -> Iterator[ast.stmt]:
        """The statements that a node is in, from the inside out."""
        while node in self._parents:
            if node in self._blocks:
                yield node
            node = self._parents[node]

    def statement(self, node: ast.AST) -> ast.stmt:
        """The innermost statement that a node of the body is in."""
        return next(self._statements(node))

    def is_rescued(self, statement: ast.stmt) -> bool:
        """If `statement` raises an error, the function may go on."""
        return any(_rescues(each) for each in self._statements(statement) if each is not statement)

    def is_set(self, name: ast.Name) -> bool:
        """The code of the scope that `name` stands in sets that variable."""
        stores = (n for n in self.names if n.id == name.id and not _is_read(n))
        return name.id not in self.declared and any(self._scope(n) is self._scope(name) for n in stores)

    def _comes_first(self, call: ast.AST, statement: ast.stmt) -> bool:
        """`statement` runs `call` exactly once, and no call before it."""
        node: ast.AST = call
        while node is not statement:
            node = self._parents[node]
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
                scopes = {self._scope(n) for n in self.names if n.id in (layer, target)}
                runs = any(isinstance(n, _RUNNING) for n in ast.walk(node.iter))
                return len(scopes) == 1 and not runs and not self.evaluates and not self.is_rescued(node)
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
    targets = getattr(statement, "targets", [getattr(statement, "target", statement)]) if simple else []
    names = [n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name) and n.id == name]
    return not all(map(_is_read, names))


def _rescues(statement: ast.stmt) -> bool:
    """It may end an error; the contexts of PyTorch don't."""
    contexts = statement.items if isinstance(statement, ast.With | ast.AsyncWith) else []
    others = (each for each in contexts if not ast.unparse(each.context_expr).startswith("torch."))
    return hasattr(statement, "handlers") or any(others)


def _is_read(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Load)


def _start(node: ast.AST) -> tuple[int, int]:
    return node.lineno, node.col_offset  # type: ignore[attr-defined]


def _end(node: ast.AST) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset  # type: ignore[attr-defined]
