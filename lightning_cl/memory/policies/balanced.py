"""An equal share of the memory for every class, or for every task, and a reservoir within each."""

from typing import ClassVar

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.memory.policies._policy import Offered, equal_share
from lightning_cl.memory.policies.reservoir import Reservoir


class ClassBalanced(Reservoir):
    """An equal share of the memory for every class seen, and a reservoir within each class.

    The share of C classes in M samples is M // C, and one more for the first M % C classes. When a class appears, the
    others shrink to their new share by removing samples at random (the only O(memory) work, once per class); a class
    with fewer samples than its share leaves the rest empty. Within a class every sample seen is held with equal
    probability at any time; deletion and ``max_age`` act within each class as in :class:`Reservoir` (with ``max_age``
    uniform while the samples of a class keep coming at an even rate).

    Args:
        max_per_class: No class holds more, even while there is room (memories of a fixed number per class).

    State: that of :class:`Reservoir`, per class.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    def __init__(self, max_per_class: int | None = None) -> None:
        if max_per_class is not None and max_per_class < 1:
            raise InputError(f"max_per_class={max_per_class!r}", "an integer >= 1", "leave max_per_class out")
        self.max_per_class = max_per_class

    def keys(self, offered: Offered) -> Tensor | None:
        """The labels."""
        return offered.labels

    def share(self, rank: int) -> int:
        """See the class."""
        return equal_share(self.size, len(self.seen), rank, self.max_per_class)


class TaskBalanced(Reservoir):
    """An equal share of the memory for every task seen, and a reservoir within each task.

    As :class:`ClassBalanced`, with the number of the task in place of the label.

    State: that of :class:`Reservoir`, per task.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"tasks"})

    def keys(self, offered: Offered) -> Tensor | None:
        """The numbers of the tasks."""
        return offered.tasks

    def share(self, rank: int) -> int:
        """See the class."""
        return equal_share(self.size, len(self.seen), rank)
