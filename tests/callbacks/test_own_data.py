"""What uniform sampling and GDumb train on."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import GDumb, Replay, UniformSampling, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory import Memory
from tests.finetuning.examples import FEW_EPOCHS, module, plain_loader, stream, trainer


class Watch(Callback):
    """Labels and first pixels of each fit, and the weights at its start."""

    def __init__(self) -> None:
        self.labels: list[list[int]] = []
        self.pixels: list[list[float]] = []
        self.starts: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.labels.append([])
        self.pixels.append([])
        self.starts.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.labels[-1] += batch[1].tolist()
        self.pixels[-1] += batch[0][:, 0].tolist()


def learn(*callbacks: Any, **options: Any) -> tuple[Any, dict[str, Any]]:
    model = options.pop("model", None) or module()
    defaults: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10}
    return model, run_sequence(model, options.pop("tasks", None) or stream(), callbacks, **{**defaults, **options})


def pixels(t: int) -> set[float]:
    data = stream()[t].train
    return set(data.batch(torch.arange(len(data)))[0][:, 0].tolist())


@pytest.mark.parametrize("balanced", [True, False])
def test_uniform_draws_from_everything(balanced: bool) -> None:
    watch = Watch()
    learn(UniformSampling(class_balanced=balanced), watch, trainer=lambda **k: FEW_EPOCHS(**{"max_epochs": 25, **k}))
    for t, (labels, seen) in enumerate(zip(watch.labels, watch.pixels, strict=True)):
        assert len(labels) == 25 * 40
        assert set(seen) <= set().union(*(pixels(i) for i in range(t + 1)))
        counts = torch.tensor(labels).bincount(minlength=6)
        expected = 1000 / (2 * (t + 1))
        assert counts[2 * (t + 1) :].sum() == 0
        # five standard deviations of a binomial
        assert ((counts[: 2 * (t + 1)] - expected).abs() < 5 * expected**0.5).all()


def test_uniform_goes_on_from_the_weights_before_and_differs_from_naive() -> None:
    watch = Watch()
    uniform, results = learn(UniformSampling(), watch)
    naive, _ = learn()
    assert not torch.equal(uniform.backbone.layers[1].weight, naive.backbone.layers[1].weight)
    assert not torch.equal(watch.starts[1]["backbone.layers.1.weight"], watch.starts[0]["backbone.layers.1.weight"])
    assert results["method_state_bytes"] == {"uniform": 0}


def test_uniform_with_a_small_store() -> None:
    watch, method = Watch(), UniformSampling(10)
    _, results = learn(method, watch)
    assert len(method.memory) == 10
    assert method.memory.labels.bincount().tolist() == [2, 2, 2, 2, 1, 1]
    assert len(set(watch.pixels[2]) & (pixels(0) | pixels(1))) <= 10
    assert set(watch.labels[2]) == set(range(6))
    assert results["method_state_bytes"]["uniform"] == method.nbytes > 0
    state = method.state_dict()
    with pytest.raises(InputError, match=r"the state of uniform with memory_size=10; expected the same memory_size"):
        UniformSampling().load_state_dict(state)


def test_gdumb_trains_on_its_memory_alone_from_the_initial_weights() -> None:
    watch, method = Watch(), GDumb(8, max_epochs=3)
    model, results = learn(method, watch, reinitialize=True)
    assert [len(labels) for labels in watch.labels] == [24, 24, 24]
    assert watch.starts[0]["backbone.layers.1.weight"].equal(watch.starts[2]["backbone.layers.1.weight"])
    for seen in watch.pixels:
        assert len(set(seen)) == 8
    # the memory is one that is offered the tasks' samples once, in their order
    expected = Memory(8, "gdumb", derive_seed(0, "gdumb"))
    for task in stream():
        expected.add(task.train.batch(torch.arange(len(task.train))), task.train.targets)
    held = expected.at(slice(0, 8))["0"]
    assert torch.equal(method.memory.at(slice(0, 8))["0"], held)
    assert set(watch.pixels[2]) == set(held[:, 0].tolist())
    naive, _ = learn()
    assert not torch.equal(model.backbone.layers[1].weight, naive.backbone.layers[1].weight)
    assert results["method_state_bytes"]["gdumb"] == method.nbytes > 0
    assert [task["seconds"].keys() >= {"collect"} for task in results["per_task"]] == [True] * 3


def test_task_ids_are_stored() -> None:
    from lightning_cl.streams import task_incremental

    for method in (GDumb(12), UniformSampling(12)):
        _, results = learn(method, model=module(head="multi"), tasks=stream(task_incremental))
        assert results["average_accuracy"] > 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UniformSampling(-1), r"memory_size=-1"),
        (lambda: GDumb(-1), r"memory_size=-1"),
        (lambda: GDumb(5, max_epochs=0), r"max_epochs=0; expected an integer >= 1, or null"),
        (lambda: learn(GDumb(5), UniformSampling()), r"methods \['gdumb', 'uniform'\].*expected one method"),
        (lambda: learn(GDumb(5), training_data="seen"), r"\['gdumb'\] with training_data='seen'.*leave the other out"),
    ],
)
def test_refuses(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("method", [lambda: GDumb(5), lambda: UniformSampling()])
def test_needs_run_sequence(method: Any) -> None:
    model = module(class_names=[f"c{i}" for i in range(6)])
    with pytest.raises(InputError, match=r"in a Trainer of your own; expected run_sequence.*HINT: use run_sequence"):
        trainer(callbacks=[method()]).fit(model, plain_loader())


def test_beside_replay() -> None:
    model, _ = learn(UniformSampling(), Replay(10))
    other, _ = learn(UniformSampling())
    assert not torch.equal(model.backbone.layers[1].weight, other.backbone.layers[1].weight)
