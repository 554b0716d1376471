"""Another function in place of one method of one instance, until it is removed."""

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any


class InstancePatch:
    """Stands in ``owner.__dict__[method]`` and calls ``function``; ``original`` is what it replaced.

    It shows the signature of the innermost original, because Lightning looks behind one ``__wrapped__`` only. A deep
    copy of the owner (weight averaging, teachers) gets its own method, not one that is still bound to the owner.
    """

    def __init__(self, owner: Any, method: str, function: Callable[..., Any], **marks: Any) -> None:
        self.original = getattr(owner, method)
        functools.update_wrapper(self, inspect.unwrap(self.original))
        self.owner, self.method, self.function = owner, method, function
        self._removed = False
        self._before = owner.__dict__.get(method)
        self.__dict__.update(marks)
        owner.__dict__[method] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def remove(self) -> bool:
        """Put the original back; False if somebody has put another function on top.

        Then this one goes together with that other one, if it is one of ours.
        """
        self._removed = True
        if self.owner.__dict__.get(self.method) is not self:
            return False
        before = self._before
        while isinstance(before, InstancePatch) and before._removed:
            before = before._before
        if before is None:
            self.owner.__dict__.pop(self.method, None)
        else:
            self.owner.__dict__[self.method] = before
        return True

    def __reduce__(self) -> Any:
        # torch.save(module) inside a fit writes the class's own method, bound to what is read
        return getattr, (self.owner, self.method)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        owner = memo.get(id(self.owner), self.owner)
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return getattr(type(owner), self.method).__get__(owner)
