"""Online streams: several updates on each batch, streams without boundaries, evaluation inside training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import AGEM, DER, EWC, GEM, L2, L2SP, SI, ICaRL, Replay, run_sequence
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.streams import blurry, gradual
from tests.resume.helpers import Killed, contents, differences, module, stream, trainer
from tests.streams.helpers import classes

ONE_PASS = trainer(max_epochs=1)


def learn(tasks: Any, *callbacks: Any, model: Any = None, **options: Any) -> dict[str, Any]:
    options = {"trainer": ONE_PASS, "batch_size": 6, "progress_bar": False, **options}
    return run_sequence(model or module(), tasks, callbacks, **options)


class Watch(Callback):
    """What comes to the model, and how many samples the memory has seen by then."""

    def __init__(self, replay: Any) -> None:
        self.replay = replay
        self.current: list[torch.Tensor] = []
        self.drawn: list[torch.Tensor] = []
        self.seen: list[int] = []
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.current.append(batch[0][:6].clone())
        self.drawn.append(self.replay.drawn[0].batch[0].clone() if self.replay.drawn else torch.empty(0))
        self.seen.append(self.replay.memory.n_seen)
        self.steps.append(trainer.global_step)


def test_each_batch_is_trained_on_several_times_with_new_draws_and_stored_once():
    replay = Replay(10, mode="separate", weights=(1.0, 1.0), fill="step")
    watch = Watch(replay)
    learn(stream(per_class=9), replay, watch, updates_per_batch=3)
    assert watch.steps == [*range(9)] * 2
    # three batches of six in each task
    for number in range(6):
        a, b, c = range(3 * number, 3 * number + 3)
        assert torch.equal(watch.current[a], watch.current[b])
        assert torch.equal(watch.current[a], watch.current[c])
        assert watch.seen[a] == watch.seen[b] == watch.seen[c] == 6 * number
        if number:
            draws = {tuple(watch.drawn[i].flatten().tolist()) for i in (a, b, c)}
            assert len(draws) == 3
    assert replay.memory.n_seen == 36


def test_one_update_is_what_it_was():
    models = [module(), module()]
    learn(stream(), Replay(8), model=models[0])
    learn(stream(), Replay(8), model=models[1], updates_per_batch=1)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


class Dies(Callback):
    """At the n-th batch of all."""

    def __init__(self, n: int) -> None:
        self.left = n

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("kind", ["tasks", "blurry", "gradual"])
def test_a_killed_run_with_several_updates_ends_as_the_uninterrupted_one(kind: str, tmp_path: Path):
    def run(folder: Path, n: int) -> dict[str, Any]:
        tasks = {"tasks": stream, "blurry": lambda: blurry(classes(4, 10), 2, blur=0.2),
                 "gradual": lambda: gradual(classes(4, 10), 2)}[kind]()  # fmt: skip
        replay = Replay(10, fill="step", policy="class_balanced")
        return learn(
            tasks, replay, AGEM(10, policy="reservoir", fill="step"), Dies(n), run_dir=folder, updates_per_batch=3,
            checkpoint_every_n_steps=2, evaluate_every_n_steps=4,
        )  # fmt: skip

    whole = run(tmp_path / "whole", 0)
    expected = contents(tmp_path / "whole")
    # in the middle of a batch, and behind one
    for n in (7, 17, 21):
        with pytest.raises(Killed):
            run(tmp_path / str(n), n)
        again = run(tmp_path / str(n), 0)
        assert differences(contents(tmp_path / str(n)), expected) == []
        assert again["accuracy_matrix"] == whole["accuracy_matrix"]
    # the stability gap is measured on all of these
    rows = whole["continual_evaluation"]
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [len(row["accuracy"]) for row in rows] == [1, 1, 1, 2, 2, 2]
    assert whole["min_accuracy"] == min(row["accuracy"][0] for row in rows[3:])


class Own(MethodCallback):
    """A method of somebody else's."""

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None: ...


NEED = {
    "EWC": lambda: EWC(1.0),
    "SI": lambda: SI(1.0),
    "L2": lambda: L2(1.0),
    "GEM": lambda: GEM(10, fill="step"),
    "Own": lambda: Own(name="own"),
}


@pytest.mark.parametrize("name", NEED)
def test_methods_that_need_a_boundary_say_so(name: str):
    message = rf"{name} on stream 'stream', which has no task boundaries.*HINT: use Replay\(fill='step'\)"
    for tasks in (blurry(classes(4, 6), 2), gradual(classes(4, 6), 2)):
        with pytest.raises(InputError, match=message):
            learn(tasks, Replay(5, fill="step"), NEED[name]())
    learn(blurry(classes(4, 6), 2, boundaries=True), NEED[name](), limit_tasks=1)


@pytest.mark.parametrize(
    ("callback", "hint"),
    [
        (lambda: Replay(5), r"Replay on .*HINT: set fill='step'"),
        (lambda: AGEM(5, policy="reservoir"), r"AGEM on .*HINT: set policy='reservoir', fill='step'$"),
        (lambda: AGEM(5, fill="step"), r"AGEM on .*HINT: set policy='reservoir', fill='step'$"),
        (lambda: Replay(5, mode="separate", fill="step"), r"Replay on .*HINT: set weights=\[0.5,0.5\]$"),
        (lambda: Replay(5, mode="separate"), r"Replay on .*HINT: set fill='step', weights=\[0.5,0.5\]$"),
        (lambda: DER(5, fill="consolidate"), r"DER on .*HINT: set fill='step'$"),
        (lambda: GEM(5), r"GEM on .*HINT: use Replay\(fill='step'\)"),
        (lambda: ICaRL(5), r"ICaRL on .*HINT: use Replay\(fill='step'\)"),
    ],
)
def test_memories_that_need_a_boundary_say_how_to_do_without(callback: Any, hint: str):
    with pytest.raises(InputError, match=hint):
        learn(blurry(classes(4, 6), 2), callback())


@pytest.mark.parametrize(
    "callback",
    [
        lambda: Replay(12, fill="step"),
        lambda: Replay(12, fill="step", mode="separate", weights=(0.5, 0.5)),
        lambda: AGEM(12, fill="step", policy="reservoir"),
        lambda: L2SP(0.1),
    ],
)
def test_methods_that_work_by_the_step_learn_streams_without_boundaries(callback: Any):
    for tasks in (blurry(classes(4, 10), 2), gradual(classes(4, 10), 2)):
        models = [module(), module()]
        results = learn(tasks, callback(), model=models[0])
        learn(tasks, model=models[1])
        assert results["status"] == "finished"
        assert any(not torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_without_boundaries_the_optimizer_goes_on():
    class Steps(Callback):
        def __init__(self) -> None:
            self.first: list[float] = []

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            state = next(iter(trainer.optimizers[0].state.values()))
            self.first.append(float(state["step"]))

    for tasks, expected in ((gradual(classes(4, 9), 2), [3, 6]), (stream(per_class=9), [3, 3])):
        steps = Steps()
        learn(tasks, steps)
        assert steps.first == expected


def test_a_bad_number_of_updates():
    with pytest.raises(InputError, match=r"updates_per_batch=0; expected an integer >= 1"):
        learn(stream(), updates_per_batch=0)
