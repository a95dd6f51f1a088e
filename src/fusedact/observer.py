"""A hook that changes nothing, so that a fused pair may run in spite of it."""

from collections.abc import Callable, Mapping
from typing import Any

from .watcher import Watcher


class Observer:
    """A module's hook that changes nothing. In copies of the module it does nothing.

    Attributes:
        look: the function that the hook calls.
        watcher: the watcher to tell of the module's input if a fused pair replaces the module's call.
    """

    def __init__(self, look: Callable[..., None] | None = None, watcher: Watcher | None = None) -> None:
        self.look, self.watcher = look, watcher

    def __call__(self, *args: Any) -> None:
        """Call `look`."""
        if self.look is not None:
            self.look(*args)

    def __reduce__(self) -> Any:
        return Observer, ()


def only_look(hooks: Mapping[int, Any]) -> bool:
    """Whether all hooks are observers."""
    return all(type(hook) is Observer for hook in hooks.values())


def watchers(hooks: Mapping[int, Any]) -> tuple[Watcher, ...]:
    """Return the watchers of a module's observers."""
    found = [hook.watcher for hook in hooks.values() if type(hook) is Observer]
    return tuple([watcher for watcher in found if watcher is not None])
