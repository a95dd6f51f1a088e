"""A hook that only looks, which a fused pair need not give way to."""

from collections.abc import Callable, Mapping
from typing import Any

from .ops import Watcher


class Observer:
    """A module's hook that changes nothing; copies of the module have one that does nothing.

    Attributes:
        look: what it does.
        watcher: who else may be told of the module's inputs, where a fused pair stands for its call.
    """

    def __init__(self, look: Callable[..., None] | None = None, watcher: Watcher | None = None) -> None:
        self.look, self.watcher = look, watcher

    def __call__(self, *args: Any) -> None:
        """Look."""
        if self.look is not None:
            self.look(*args)

    def __reduce__(self) -> Any:
        return Observer, ()


def only_look(hooks: Mapping[int, Any]) -> bool:
    """Whether all hooks are observers."""
    return all(type(hook) is Observer for hook in hooks.values())


def watchers(hooks: Mapping[int, Any]) -> tuple[Watcher, ...]:
    """Who is told by a module's hooks."""
    found = [hook.watcher for hook in hooks.values() if type(hook) is Observer]
    return tuple([watcher for watcher in found if watcher is not None])
