"""What rewritten calls do when they run.

The first call of a pair is put off until the second one: `begin(act, x)` gives a `Deferred`, which only
`finish(drop, deferred)` gets to see. If the two are a pair that a kernel takes there and then, it runs. Else
the two calls run as they were written, in their order.

Putting off takes microseconds. So where both are at hand, as in `pair` and `chain`, two modules that nothing
hangs on run at once.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from .. import observer
from .._torch import PRE_HOOKS, UNSTORED, child, part
from ..activations import Bound
from .recognise import (
    IDENTITY,
    METHODS,
    NEW,
    activation,
    at_once,
    commutes,
    dropout,
    dropped,
    fused,
    is_fresh,
    is_identity,
    is_sequence,
)

Key = tuple[Any, ...] | str  # of a place in a module's code
CHAIN = "Sequential.forward"


class Deferred:
    """A call that is put off: an activation, or a dropout of the probability `found`.

    One of None has run and given its only argument. If `found` is NEW, nobody else holds that tensor. `alone`
    gives a kernel's result for the call, or None.
    """

    __slots__ = ("alone", "args", "callee", "found", "kwargs")

    def __init__(
        self,
        callee: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        found: Bound | float | object,
        alone: Callable[[], Tensor | None] | None = None,
    ) -> None:
        self.callee, self.args, self.kwargs, self.found, self.alone = callee, args, kwargs, found, alone

    def run(self) -> Any:
        """Its result, by one call."""
        if self.callee is not None:
            result: Any = self.alone() if self.alone is not None else None
            if result is None:
                result = self.callee(*self.args, **self.kwargs)
            self.callee, self.args, self.kwargs = None, (result,), {}
        return self.args[0]


def settled(result: Any) -> Any:
    """`result`, of which nothing is put off any more."""
    return result.run() if type(result) is Deferred else result


class Calls:
    """The calls of one fused module.

    Attributes:
        code: the rewritten functions that they stand in, for processes that load the module.
        lone_dropout: a dropout that follows no activation runs fused as well.
        watchers: by place, who counts the inputs of its activation.
    """

    def __init__(self, code: tuple[Any, ...], lone_dropout: bool) -> None:
        self.code, self.lone_dropout = code, lone_dropout
        self.watchers: dict[Key, tuple[Any, ...]] = {}

    def __deepcopy__(self, memo: Any) -> "Calls":
        """Watchers watch this module alone."""
        return Calls(self.code, self.lone_dropout)

    def __reduce__(self) -> Any:
        from .rewrite import revive

        return revive, (self.code, self.lone_dropout)

    part, settled = staticmethod(part), staticmethod(settled)

    @staticmethod
    def method(name: str) -> Any:
        """The call of a tensor's method."""
        return METHODS[name]

    def begin(self, key: Key, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call whose result goes to another of these calls alone, and may be put off until then.

        `key` is its place; `callee` is what is called with all other arguments.
        """
        fresh = is_fresh(callee)  # asked twice, since a hook may go with the call
        result = self._begin(key, None, callee, args, kwargs)
        new = fresh and type(result) is Tensor and is_fresh(callee)
        return Deferred(None, (result,), {}, NEW) if new else result

    def finish(self, key: Key, callee: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call whose result goes where nothing is known of it."""
        held = args[0] if args else kwargs["input"]
        if type(held) is not Deferred and not self.lone_dropout:
            return callee(*args, **kwargs)
        return settled(self._begin(key, None, callee, args, kwargs))

    def pair(self, first: Key, key: Key, drop: Any, act: Any, x: Any, name: str = "", /) -> Any:
        """`drop(act(x))`: a `finish` on a `begin`, as most pairs are, without what others need.

        With a name it is `h = act(x)` and `drop.name(h)` in two statements. If `act` has to run as it is
        written, it runs before that look-up.
        """
        activated = None if self.watchers else at_once(act)
        if activated is not None:
            result = dropped(child(drop, name) if name else drop, activated, x)
            if result is not None:
                return result
        held = self._begin(first, None, act, (x,), {})
        return self.finish(key, part(drop, name) if name else drop, held)

    def chain(
        self, key: Key, callees: Iterable[Any], held: Any, producer: Any = None, opens: bool = False
    ) -> Any:
        """One call after the other, as `nn.Sequential` does. With `opens` the last may be put off.

        `producer` was called for `held`.
        """
        steps, i, watched = iter(callees), 0, self.watchers
        for callee in steps:
            activated = None if watched else at_once(callee, producer)
            if activated is not None:
                following = next(steps, steps)
                result = dropped(following, activated, held)
                if result is None:
                    held = self._begin((key, i), producer, callee, (held,), {})
                    if following is steps:
                        break
                    result = self._begin((key, i + 1), callee, following, (held,), {})
                held, producer = result, following
                i += 2
                continue
            fresh = is_fresh(callee)
            if fresh and type(held) is not Deferred:
                held = callee(held)
            else:
                held = self._begin((key, i), producer, callee, (held,), {})
            producer = callee if fresh else None
            i += 1
        return held.run() if type(held) is Deferred and not opens else held

    def _begin(
        self, key: Key, producer: Any, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        held = args[0] if args else kwargs["input"]
        if type(held) is Deferred:
            together = self._together(key, held, callee, args, kwargs)
            if together is not None:
                return together
            if is_identity(callee):
                return held
            producer = NEW if held.found is NEW else producer
        found: Bound | float | None = activation(callee, args, kwargs, producer)
        if found is None:
            calls = calls_of(callee) if is_sequence(callee) else None
            if calls is not None and len(args) == 1 and not kwargs:
                return calls.chain(CHAIN, callee, held, producer, True)
            found = dropout(callee, args, kwargs, producer)
        if type(held) is Deferred:
            args, kwargs = (
                ((held.run(), *args[1:]), kwargs) if args else ((), {**kwargs, "input": held.run()})
            )
        if found is None:
            return callee(*args, **kwargs)
        alone = None
        if self.lone_dropout and type(found) is not Bound:  # unless it turns out to be half of a pair
            alone = functools.partial(self._alone, key, callee, args, kwargs)
        return Deferred(callee, args, kwargs, found, alone)

    def _alone(self, key: Key, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """One kernel's result for a dropout; None if it has to run as it was written."""
        result = dropped(callee, IDENTITY, args[0] if args else kwargs["input"])
        if result is None:
            result = self._together(key, Deferred(None, args, kwargs, IDENTITY), callee, args, kwargs)
        return result

    def _together(
        self, key: Key, held: Deferred, callee: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | None:
        """One kernel's result for both calls; None if they have to run as they were written."""
        found: Any = held.found
        activated: Bound | None
        p: float | None
        if found is NEW:
            return None
        if isinstance(found, Bound):
            activated, p, function = found, dropout(callee, args, kwargs, NEW), held.callee
        else:
            activated, p, function = activation(callee, args, kwargs, NEW), found, callee
            if activated is None or not commutes(activated.row):
                return None
        watchers = self._watching(key, callee, activated) if self.watchers else ()
        x = held.args[0] if held.args else held.kwargs["input"]
        if p is not None and 0.0 < p < 1.0:
            told = watchers
            looking = getattr(function, PRE_HOOKS, None)
            if looking:
                told += tuple([watcher for watcher in observer.watchers(looking) if watcher.wants(True)])
            result = fused(activated, x, p, told)
            if result is not None:
                return result
        for watcher in watchers:
            watcher(x)
        return None

    def _watching(self, key: Key, callee: Any, activated: Bound) -> tuple[Any, ...]:
        training = callee.training if isinstance(callee, nn.Module) else True
        watchers = tuple([watcher for watcher in self.watchers.get(key, ()) if watcher.wants(training)])
        for watcher in watchers:
            watcher.computes(activated.row, activated.values)
        return watchers


class Marked(set[str]):
    """A module's set of names of buffers that aren't stored, which tells that the module is fused.

    Attributes:
        fusedact: the module's calls.
    """

    fusedact: Calls


def calls_of(module: nn.Module) -> Calls | None:
    """The calls of a fused module; None if it isn't fused."""
    return getattr(getattr(module, UNSTORED), "fusedact", None)


def mark(module: nn.Module, calls: Calls | None) -> None:
    """Mark a module as fused; with None, as not."""
    if calls is not None:
        marked = Marked(getattr(module, UNSTORED))
        marked.fusedact = calls
        vars(module)[UNSTORED] = marked  # past a `__setattr__` of the model's own
    elif calls_of(module) is not None:
        vars(module)[UNSTORED] = set(getattr(module, UNSTORED))
