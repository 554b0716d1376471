import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import Stream, build_stream, merge_tasks, permutation, rotation
from lightning_cl.streams.scenarios import (
    BUILDERS,
    class_incremental,
    data_incremental,
    domain_incremental,
    online,
    task_incremental,
)
from tests.streams.helpers import classes, equal


def everything(data):
    return data.batch(torch.arange(len(data)))


def pixels(data):
    """The samples' own numbers, see `helpers.classes`."""
    return everything(data)[0][:, 0, 0, 0].tolist()


def test_class_incremental_splits_the_classes_and_keeps_labels_true():
    source = classes()
    stream = class_incremental(source, 5, class_order_seed=3, name="five")
    assert isinstance(stream, Stream)
    assert (stream.name, stream.scenario, len(stream), stream.input_shape) == (
        "five",
        "class_incremental",
        5,
        (1, 4, 4),
    )
    assert sorted(stream.class_names) == sorted(source.class_names) != stream.class_names
    assert [name for task in stream for name in task.classes] == stream.class_names
    for number, task in enumerate(stream):
        assert task.id == number
        assert task.name == f"task {number}"
        assert task.class_indices == (2 * number, 2 * number + 1)
        for data, offset in ((task.train, 0), (task.test, 0.5)):
            x, y = everything(data)
            assert len(y) == 24
            assert torch.equal(y, data.targets)
            # sample number -> its label in the data set -> its class name -> its place in the stream
            names = [source.class_names[source.train.targets[int(number - offset)]] for number in x[:, 0, 0, 0]]
            assert [stream.class_names[label] for label in y] == names
    assert sorted(number for task in stream for number in pixels(task.train)) == list(range(120))


def test_class_order_depends_on_its_own_seed_only():
    names = [class_incremental(classes(), 5, class_order_seed=order, seed=seed).class_names for order, seed in
             ((0, 0), (0, 1), (1, 0), (None, 1))]  # fmt: skip
    assert names[0] == names[1] != names[2]
    assert names[3] == classes().class_names


def test_base_fraction_makes_a_large_first_task():
    assert [len(task.classes) for task in class_incremental(classes(), 5, base_fraction=0.6)] == [6, 1, 1, 1, 1]
    stream = data_incremental(classes(), 5, base_fraction=0.6)
    assert [len(task.train) for task in stream] == [72, 12, 12, 12, 12]


def test_classes_per_task():
    sizes = [len(task.classes) for task in class_incremental(classes(), classes_per_task=[5, 2, 1])]
    assert sizes == [5, 2, 1]
    assert [len(task.classes) for task in class_incremental(classes(), classes_per_task=3)] == [3, 3, 3]
    assert [len(task.classes) for task in class_incremental(classes(), 2, classes_per_task=2)] == [2, 2]


def test_task_incremental_gives_task_ids():
    stream = task_incremental(classes(), 5)
    for task in stream:
        _, y, ids = everything(task.train)
        assert ids.eq(task.id).all()
        assert ids.dtype == torch.long
        assert sorted(y.unique().tolist()) == list(task.class_indices)


def test_task_incremental_over_transforms_is_a_head_per_task():
    stream = task_incremental(classes(3), 2, transform=rotation([0, 30]))
    names = ["task 0: c0", "task 0: c1", "task 0: c2", "task 1: c0", "task 1: c1", "task 1: c2"]
    assert stream.class_names == names
    assert stream[1].class_indices == (3, 4, 5)
    assert stream[1].name == "rotation 30"
    assert stream[1].train.targets.unique().tolist() == [3, 4, 5]
    assert torch.equal(stream[0].train.targets + 3, stream[1].train.targets)
    assert everything(stream[1].test)[2].unique().tolist() == [1]


def test_domain_incremental_over_split_classes_relabels():
    stream = domain_incremental(classes(), 4, class_order_seed=1)
    assert stream.class_names == ["class 0", "class 1", "class 2"]
    assert [task.class_indices for task in stream] == [(0, 1, 2), (0, 1, 2), (0, 1), (0, 1)]
    split = class_incremental(classes(), 4, class_order_seed=1)
    for one, other in zip(stream, split, strict=True):
        assert torch.equal(everything(one.train)[0], everything(other.train)[0])
        assert torch.equal(one.train.targets, other.train.targets - min(other.class_indices))


def test_domain_incremental_over_transforms_keeps_classes_and_samples():
    source = classes(3)
    source.train.x.copy_(torch.rand_like(source.train.x))
    transforms = permutation(3, seed=4, first_identity=True)
    stream = domain_incremental(source, transform=iter(transforms))
    assert [task.name for task in stream] == ["original", "permutation 1", "permutation 2"]
    assert stream.class_names == source.class_names
    x = everything(source.train)[0]
    for task, transform in zip(stream, transforms, strict=True):
        assert torch.equal(everything(task.train)[0], transform(x, torch.arange(len(x))))
        assert torch.equal(task.train.targets, source.train.targets)
        assert task.train.x is source.train.x
    assert len(domain_incremental(source, 2, transform=transforms)) == 2


def test_data_incremental_shares_out_the_samples():
    source = classes()
    stream = data_incremental(source, 4, seed=1)
    numbers = [sorted(pixels(task.train)) for task in stream]
    assert sorted(number for task in numbers for number in task) == list(range(120))
    assert sorted(number for task in stream for number in pixels(task.test)) == [n + 0.5 for n in range(120)]
    for task in stream:
        assert task.classes == tuple(source.class_names)
        assert task.train.targets.bincount().tolist() == [3] * 10
    assert numbers != [sorted(pixels(task.train)) for task in data_incremental(source, 4, seed=2)]
    drift = data_incremental(source, transform=rotation([0, 10]))
    assert [(task.name, len(task.train)) for task in drift] == [("rotation 0", 60), ("rotation 10", 60)]


@pytest.mark.parametrize("over", ["class_incremental", "task_incremental", "data_incremental"])
def test_online_is_any_scenario_in_one_pass(over):
    stream = online(classes(), 5, over=over)
    base = BUILDERS[over](classes(), 5)
    assert stream.scenario == "online"
    assert [stream.fingerprint(i) for i in range(5)] == [base.fingerprint(i) for i in range(5)]
    assert build_stream(classes(), "online", n_tasks=5, online_over=over).fingerprint(2) == stream.fingerprint(2)


def test_validation_is_a_stratified_part_of_the_training_data():
    whole = class_incremental(classes(), 5)
    stream = class_incremental(classes(), 5, validation_fraction=0.25)
    for task, full in zip(stream, whole, strict=True):
        assert full.validation is None
        assert task.validation.targets.bincount()[-2:].tolist() == [3, 3]
        assert sorted(pixels(task.train) + pixels(task.validation)) == pixels(full.train)
        assert len(task.test) == len(full.test)
    another = class_incremental(classes(), 5, validation_fraction=0.25, seed=1)
    assert pixels(another[0].validation) != pixels(stream[0].validation)


def test_only_training_data_are_augmented():
    stream = class_incremental(classes(), 5, augment=lambda x: x + 1000, validation_fraction=0.25)
    for data, augmented in ((stream[0].train, True), (stream[0].validation, False), (stream[0].test, False)):
        plain, changed = (data.batch(torch.arange(3), augment=flag)[0] for flag in (False, True))
        assert torch.equal(plain + 1000 * augmented, changed)
    assert stream[0].train.seed != stream[1].train.seed


def test_build_stream_equals_the_builders():
    arguments = {"n_tasks": 5, "name": "s", "seed": 2, "validation_fraction": 0.25, "pad": 2, "normalize": (0.5, 2.0)}
    for name, builder in BUILDERS.items():
        one, other = build_stream(classes(), name, **arguments), builder(classes(), **arguments)
        assert one.scenario == name
        assert one.input_shape == (1, 8, 8)
        for task, same in zip(one, other, strict=True):
            assert equal([everything(task.train)], [everything(same.train)])


def test_fingerprints_tell_tasks_apart():
    one, same = (class_incremental(classes(), 5) for _ in range(2))
    assert [one.fingerprint(i) for i in range(5)] == [same.fingerprint(i) for i in range(5)]
    others = [
        class_incremental(classes(), 5, class_order_seed=1),
        class_incremental(classes(), 5, validation_fraction=0.1),
        class_incremental(classes(per_class=13), 5),
        domain_incremental(classes(), 5),
    ]
    assert len({one.fingerprint(0), one.fingerprint(1), *(other.fingerprint(0) for other in others)}) == 6


def test_merged_tasks_hold_all_data():
    stream = task_incremental(classes(), 5, validation_fraction=0.25)
    merged = merge_tasks(stream[1:4], id=9, name="joint")
    assert (merged.id, merged.name, merged.class_indices) == (9, "joint", (2, 3, 4, 5, 6, 7))
    assert merged.classes == ("c2", "c3", "c4", "c5", "c6", "c7")
    for part in ("train", "validation", "test"):
        expected = [
            torch.cat(leaf) for leaf in zip(*(everything(getattr(task, part)) for task in stream[1:4]), strict=True)
        ]
        assert equal([everything(getattr(merged, part))], [tuple(expected)])
    assert merge_tasks(class_incremental(classes(), 5)[:2], id=0, name="j").validation is None
    domains = domain_incremental(classes(3), transform=rotation([0, 90]))
    both = merge_tasks(domains.tasks, id=0, name="j")
    assert both.classes == ("c0", "c1", "c2")
    assert len(both.train) == 72
    assert torch.equal(everything(both.train)[0][36:], everything(domains[1].train)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tasks": 11}, r"^10 classes for 11 tasks; expected at least 11 classes\. HINT: set n_tasks <= 10"),
        ({"n_tasks": 0}, r"^n_tasks=0; expected an integer >= 1\. HINT: set stream\.n_tasks=5"),
        ({}, r"^n_tasks=None; expected an integer >= 1\. HINT"),
        ({"n_tasks": 0, "scenario": "data_incremental"}, r"^n_tasks=0; expected an integer >= 1\. HINT"),
        (
            {"n_tasks": -1, "transform": rotation([0]), "scenario": "domain_incremental"},
            r"^n_tasks=-1; expected an int",
        ),
        ({"n_tasks": 5, "base_fraction": 1.0}, r"^base_fraction=1\.0; expected a fraction inside \(0, 1\)\. HINT: set"),
        ({"n_tasks": 5, "base_fraction": 0}, r"^base_fraction=0; expected a fraction inside \(0, 1\)"),
        ({"n_tasks": 1, "base_fraction": 0.5}, r"^n_tasks=1 with a base_fraction; expected n_tasks >= 2\. HINT: set"),
        ({"n_tasks": 5, "base_fraction": 0.8}, r"^2 classes after the first task's 8 for 4 tasks; expected at least 4"),
        ({"n_tasks": 5, "validation_fraction": 1.0}, r"^validation_fraction=1\.0; expected a fraction inside \[0, 1\)"),
        (
            {"n_tasks": 5, "validation_fraction": -0.1},
            r"^validation_fraction=-0\.1; expected a fraction inside \[0, 1\)",
        ),
        ({"n_tasks": 5, "scenario": "classes"}, r"^scenario='classes'; expected one of class_incremental, task.* HINT"),
        (
            {"n_tasks": 5, "scenario": "online", "online_over": "online"},
            r"^online_over='online'; expected one of class",
        ),
        ({"n_tasks": 5, "transform": rotation([0])}, r"^1 task transforms for n_tasks=5; expected one transform per"),
        ({"classes_per_task": [5, 6]}, r"^classes_per_task=\[5, 6\] with n_tasks=None and 10 classes; expected at"),
        ({"n_tasks": 3, "classes_per_task": [5, 5]}, r"^classes_per_task=\[5, 5\] with n_tasks=3 and 10 classes"),
        ({"classes_per_task": 11}, r"^classes_per_task=11 with n_tasks=None and 10 classes"),
        (
            {"classes_per_task": 2, "base_fraction": 0.5},
            r"^base_fraction=0\.5 in a stream with classes_per_task; expected",
        ),
        (
            {"n_tasks": 2, "classes_per_task": 2, "scenario": "data_incremental"},
            r"^classes_per_task=2 in data_incremental",
        ),
        (
            {"transform": rotation([0, 1]), "base_fraction": 0.5, "scenario": "domain_incremental"},
            r"^base_fraction=0\.5 in domain_incremental with transforms; expected no base_fraction there\. HINT: set",
        ),
        (
            {"transform": rotation([0, 1]), "classes_per_task": 2, "scenario": "task_incremental"},
            r"^classes_per_task=2 in task_incremental with transforms",
        ),
        (
            {"n_tasks": 200, "scenario": "data_incremental"},
            r"^120 training samples for 200 tasks; expected at least 200 training samples",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build_stream(classes(), **arguments)


def test_empty_tasks_are_refused():
    source = classes(4)
    source.train.targets[source.train.targets == 3] = 0
    with pytest.raises(
        InputError, match=r"^'task 3' of stream 'stream' has no training samples; expected a task that is"
    ):
        class_incremental(source, 4)
    with pytest.raises(InputError, match=r"^stream 'none' without tasks; expected at least one task\. HINT"):
        Stream("none", "class_incremental", [], [])


def test_a_data_set_must_be_a_classification():
    with pytest.raises(
        InputError, match=r"^dataset=list; expected a Classification\. HINT: wrap a data set of your own"
    ):
        build_stream([(1, 2)], n_tasks=1)
