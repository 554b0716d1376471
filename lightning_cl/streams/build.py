"""The stream of a config."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.grouping import refuse
from lightning_cl.streams.scenarios import BUILDERS, builder_of
from lightning_cl.streams.source import Classification
from lightning_cl.streams.stream import Stream


def build_stream(
    dataset: Classification,
    scenario: str = "class_incremental",
    name: str = "stream",
    n_tasks: int | None = None,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    transform: Iterable[TaskTransform] | None = None,
    augment: Callable[..., Any] | None = None,
    normalize: tuple[Any, Any] | None = None,
    pad: int | None = None,
    online_over: str = "class_incremental",
    blur: float | None = None,
    width: float | None = None,
    boundaries: bool | None = None,
) -> Stream:
    """The stream of a config: dispatches to the scenario's builder.

    Args:
        dataset: The data set, from ``lightning_cl.streams.datasets`` or a `Classification` of your own.
        scenario: Name of a builder in this module.
        name: Name of the stream.
        n_tasks: Number of tasks.
        classes_per_task: See `class_incremental`.
        class_order_seed: See `class_incremental`.
        base_fraction: Part of the classes (or samples, in data_incremental) in the first task.
        validation_fraction: Part of each task's training data that is held out for validation.
        seed: Seed of order, augmentation, validation split and sample shares.
        transform: Task transforms, a list or generator with one per task.
        augment: Random transform of training inputs.
        normalize: (mean, standard deviation), each one number per channel.
        pad: Zeros added on each side of the images.
        online_over: For ``scenario="online"``: the scenario that makes the tasks.
        blur: Of `blurry`: share of each task's samples that is in other tasks.
        width: Of `gradual`: how long a class is met, in lengths of a stretch.
        boundaries: Of `blurry`: whether methods may know where a task ends.

    Raises:
        InputError: For an unknown scenario, and as the scenario's builder does.
    """
    if not isinstance(dataset, Classification):
        raise InputError(
            f"dataset={type(dataset).__name__}",
            "a Classification",
            "wrap a data set of your own: lightning_cl.streams.custom(train=..., test=...)",
        )
    builder = builder_of(scenario, "scenario", list(BUILDERS))
    arguments: dict[str, Any] = {
        "classes_per_task": classes_per_task,
        "class_order_seed": class_order_seed,
        "over": online_over,
    }
    made_by = online_over if scenario == "online" else scenario
    if scenario != "online":
        del arguments["over"]
    if made_by == "data_incremental":
        refuse("data_incremental", classes_per_task=classes_per_task)
        del arguments["classes_per_task"], arguments["class_order_seed"]
    given = {"blur": blur, "width": width, "boundaries": boundaries, "transform": transform}
    own = {"blurry": ("blur", "boundaries"), "gradual": ("width",)}.get(made_by, ("transform",))
    refuse(made_by, **{key: value for key, value in given.items() if key not in own})
    arguments |= {key: given[key] for key in own if given[key] is not None}
    return builder(
        dataset,
        n_tasks,
        base_fraction=base_fraction,
        name=name,
        validation_fraction=validation_fraction,
        seed=seed,
        augment=augment,
        normalize=normalize,
        pad=pad,
        **arguments,
    )
