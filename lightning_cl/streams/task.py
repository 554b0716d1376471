"""One step of a stream."""

from dataclasses import dataclass

from lightning_cl.streams.data import Data


@dataclass(frozen=True)
class Task:
    """One step of a stream: its data, its classes, its place.

    Args:
        id: Position in the stream, from 0.
        name: What people call it, ``"task 0"`` or what the builder says (``"rotation 30"``).
        classes: Names of this task's classes.
        class_indices: Their positions in ``Stream.class_names``; these are the labels that the data serve.
        train: Training data.
        validation: Data held out of the training data, or None.
        test: Test data.
        seed: The stream's seed for order and augmentation.
        in_order: Training samples are served in their own order, the same in every epoch.
    """

    id: int
    name: str
    classes: tuple[str, ...]
    class_indices: tuple[int, ...]
    train: Data
    validation: Data | None
    test: Data
    seed: int = 0
    in_order: bool = False
