"""WiSE-FT inside real Trainers and sequences."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import EWC, Adapters, FineTuningModule, InputError, WiSEFT, run_sequence
from lightning_cl.callbacks._alpha_curve import best_alpha
from lightning_cl.functional import interpolate
from lightning_cl.streams import Stream, TensorData
from lightning_cl.streams.task import Task
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import module, stream, trainer


class Validated(Net):
    """Adds BatchNorm, and a validation metric."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = nn.Sequential(self.net[0], nn.BatchNorm1d(8), *self.net[1:])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_accuracy", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))
        self.log("val_loss", nn.functional.cross_entropy(self(x), y), batch_size=len(y))

    def on_validation_end(self) -> None:
        self.validations = getattr(self, "validations", 0) + 1


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def ends() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights before and after a fit without it."""
    net = Validated(lr=0.3)
    before = state_of(net)
    fit(net, data(0))
    return before, state_of(net)


@pytest.mark.parametrize("alpha", [0, 0.3, 1])
def test_a_fixed_alpha_interpolates_weights_and_statistics(alpha: float):
    before, after = ends()
    net, wise = Validated(lr=0.3), WiSEFT(alpha)
    fit(net, data(0), wise)
    assert same(state_of(net), interpolate(before, after, alpha))
    assert same(state_of(net), after) == (alpha == 1)
    assert wise.alpha == alpha
    assert (wise.n_tasks, wise.done, wise.nbytes) == (1, 1, 0)


def fit_with_validation(net: Any, wise: WiSEFT, *others: Any, **options: Any) -> Trainer:
    made = Trainer(
        accelerator="cpu", max_epochs=3, callbacks=[wise, *others], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    made.fit(net, data(0), data(0, n=60))
    return made


@pytest.mark.parametrize(("monitor", "mode"), [("val_accuracy", "max"), ("val_loss", "min")])
def test_validation_chooses_in_a_trainer_of_ones_own(monitor: str, mode: Any):
    net, wise = Validated(lr=1.0), WiSEFT(monitor=monitor, mode=mode)
    made = fit_with_validation(net, wise)
    before = state_of(Validated(lr=1.0))
    plain = Validated(lr=1.0)
    fit(plain, data(0), max_epochs=3)
    after = state_of(plain)
    # the oracle: evaluate each point by hand
    x, y = data(0, n=60).dataset.tensors
    curve = []
    for alpha in wise.alphas:
        plain.load_state_dict(interpolate(before, after, alpha))
        plain.eval()
        with torch.no_grad():
            logits = plain(x)
        value = (logits.argmax(1) == y).float().mean() if mode == "max" else nn.functional.cross_entropy(logits, y)
        curve.append(float(value))
    assert wise.curve == pytest.approx(curve, abs=1e-5)
    assert wise.alpha == best_alpha(wise.alphas, curve, mode == "max")
    assert 0 < wise.alpha < 1, "the example has its best point inside"
    assert same(state_of(net), interpolate(before, after, wise.alpha))
    assert net.trainer is made
    assert net.training


def test_other_methods_consolidate_what_it_chose():
    net, wise, ewc = Validated(lr=0.3), WiSEFT(0.4), EWC(1.0)
    fit(net, data(0), wise, ewc)
    before, after = ends()
    chosen = interpolate(before, after, 0.4)
    assert all(torch.equal(value, chosen[name]) for name, value in ewc.anchor.items())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_goes_from_the_best_weights_and_stays_where_it_went(alpha: float, tmp_path: Path):
    net, start = Validated(), state_of(Validated())
    best = ModelCheckpoint(tmp_path, monitor="val_accuracy", mode="min")
    wise, ewc = WiSEFT(alpha, alphas=[], select="best"), EWC(1.0)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    made = Trainer(accelerator="cpu", max_epochs=3, callbacks=[wise, ewc, best], num_sanity_val_steps=0, **quiet)
    made.fit(net, data(0), data(0, n=60))
    kept = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert same(state_of(net), interpolate(start, kept, alpha))
    assert all(torch.equal(net.get_parameter(name), value) for name, value in ewc.anchor.items())


def test_adapters_stand_before_it():
    net = Net()
    with pytest.raises(InputError, match=r"WiSEFT before Adapters.*; expected Adapters first. HINT"):
        fit(net, data(0), WiSEFT(0.0, alphas=[]), Adapters())
    net, x = Net(), data(0).dataset.tensors[0]
    before = net.eval()(x)
    fit(net.train(), data(0), Adapters(), WiSEFT(0.0, alphas=[]))
    assert torch.equal(net.eval()(x), before)


def test_previous_is_the_task_before_and_pretrained_the_first():
    for anchor in ("previous", "pretrained"):
        net, wise = Net(), WiSEFT(0.5, anchor=anchor)  # type: ignore[arg-type]
        starts = [state_of(net)]
        for task in range(2):
            plain = Net()
            plain.load_state_dict(net.state_dict())
            fit(plain, data(task))
            fit(net, data(task), wise)
            start = starts[0] if anchor == "pretrained" else starts[-1]
            assert same(state_of(net), interpolate(start, state_of(plain), 0.5))
            starts.append(state_of(net))
        assert (wise.nbytes > 0) == (anchor == "pretrained")


def test_entries_that_are_to_be_the_fine_tuned_ones():
    before, after = ends()
    net = Validated(lr=0.3)
    fit(net, data(0), WiSEFT(0, fine_tuned=r"^net\.3"))
    for name, value in state_of(net).items():
        expected = after if name.startswith("net.3") or "num_batches" in name else before
        assert torch.equal(value, expected[name]), name
    with pytest.raises(InputError, match=r"fine_tuned='fc'; expected a name in the state dict. HINT: some are"):
        fit(Net(), data(0), WiSEFT(0, fine_tuned="fc"))


def test_batch_norm_is_estimated_anew_on_the_training_data():
    net, wise = Validated(lr=0.3), WiSEFT(0.5, batch_norm="reestimate")
    fit(net, data(0), wise)
    before, after = ends()
    mixed = interpolate(before, after, 0.5)
    first, bn = nn.Linear(4, 8), state_of(net)
    first.load_state_dict({"weight": mixed["net.0.weight"], "bias": mixed["net.0.bias"]})
    with torch.no_grad():
        inputs = [first(x) for x, _ in data(0)]
    torch.testing.assert_close(bn["net.1.running_mean"], torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(bn["net.1.running_var"], torch.stack([x.var(0) for x in inputs]).mean(0))
    assert all(
        torch.equal(value, mixed[name]) for name, value in bn.items() if "running" not in name and "num" not in name
    )
    net = Validated(lr=0.3)
    fit(net, data(0), WiSEFT(1, batch_norm="reestimate"))
    assert same(state_of(net), after), "at the end they are the training's own"


def test_batch_norm_that_was_frozen_is_left_alone():
    class Frozen(Validated):
        def on_train_batch_start(self, *_: Any) -> None:
            self.net[1].eval()

    net = Frozen(lr=0.3)
    before = state_of(net)
    fit(net, data(0), WiSEFT(0.5, batch_norm="reestimate"))
    assert torch.equal(net.net[1].running_mean, before["net.1.running_mean"])


def test_a_stopped_fit_is_not_moved_and_keeps_its_start():
    class Stops(Validated):
        def on_train_batch_end(self, *_: Any) -> None:
            self.trainer.should_stop = True

    net, wise = Stops(lr=0.3), WiSEFT(0.5)
    before = state_of(net)
    fit(net, data(0), wise, max_epochs=2, min_steps=1)
    assert (wise.n_tasks, wise.done) == (0, 0)
    assert same(wise._before, before)


def test_accumulation_clipping_and_bf16():
    net, plain = Validated(lr=0.3), Validated(lr=0.3)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1, "precision": "bf16-mixed"}
    before = state_of(net)
    fit(plain, data(0), **options)
    fit(net, data(0), WiSEFT(0.5), **options)
    assert same(state_of(net), interpolate(before, state_of(plain), 0.5))


# in a sequence ------------------------------------------------------------------------------------------------------


def learn(wise: Any, run_dir: Any = None, **options: Any) -> tuple[dict[str, Any], FineTuningModule]:
    learner = module()
    options = {"stream": stream(validation=0.3), "trainer": trainer(max_epochs=3), "batch_size": 6} | options
    return run_sequence(learner, callbacks=wise, progress_bar=False, run_dir=run_dir, **options), learner


def test_the_curve_is_in_the_results_and_its_ends_are_the_models(tmp_path: Path):
    plain_results, plain = learn([])
    results, tuned = learn([WiSEFT(1.0)], tmp_path)
    assert same(state_of(tuned), state_of(plain))
    assert results["accuracy_matrix"] == plain_results["accuracy_matrix"]
    curve = results["interpolation"]["wise_ft"]
    assert list(curve) == ["0", "1"]
    for task in (0, 1):
        found = curve[str(task)]
        assert found["alphas"] == [i / 10 for i in range(11)]
        assert list(found["test"]) == [f"task {i}" for i in range(task + 1)]
        for name, values in found["test"].items():
            assert values[-1] == results["accuracy_matrix"][task][int(name[-1])]


def test_validation_chooses_and_what_is_evaluated_is_what_was_chosen():
    results, _ = learn([WiSEFT()])
    for task, found in results["interpolation"]["wise_ft"].items():
        assert found["alpha"] == best_alpha(found["alphas"], found["validation"])
        place = found["alphas"].index(found["alpha"])
        own = results["accuracy_matrix"][int(task)][: int(task) + 1]
        assert [values[place] for values in found["test"].values()] == own


def domains() -> Stream:
    """Two classes, told apart by the first pixel in the first domain and by the second in the other."""
    source, tasks = torch.Generator().manual_seed(0), []
    for task in range(2):
        parts = []
        for _ in range(3):
            x = torch.randn(60, 1, 4, 4, generator=source)
            parts.append(TensorData(x, (x[:, 0, 0, task] > 0).long()))
        tasks.append(Task(task, f"domain {task}", ("a", "b"), (0, 1), *parts))
    return Stream("domains", "domain_incremental", tasks, ["a", "b"])


def test_validation_of_all_tasks_seen():
    for choose in ("val", "val_seen"):
        results, _ = learn([WiSEFT(choose)], stream=domains(), trainer=trainer(max_epochs=1))  # type: ignore[arg-type]
        found = results["interpolation"]["wise_ft"]["1"]
        row = results["validation_accuracy_matrix"][1]
        best = found["validation"][found["alphas"].index(found["alpha"])]
        assert best == pytest.approx(row[1] if choose == "val" else sum(row) / 2)
        assert best == max(found["validation"])


def test_later_tasks_are_measured_where_their_classes_are_known():
    tasks = stream(n_classes=2)
    shifted = Task(1, "shifted", tasks[0].classes, tasks[0].class_indices, tasks[0].train, None, tasks[0].test)
    two = Stream("domains", "domain_incremental", [tasks[0], shifted], tasks.class_names)
    for future in (False, True):
        results, _ = learn([WiSEFT(0.5)], stream=two, trained_tasks=1, evaluate_future=future)
        names = ["task 0", "shifted"] if future else ["task 0"]
        assert list(results["interpolation"]["wise_ft"]["0"]["test"]) == names
    results, _ = learn([WiSEFT(0.5, test_curve=False)], stream=two)
    assert results["interpolation"]["wise_ft"]["0"]["test"] == {}
    results, _ = learn([WiSEFT(0.5, alphas=[])], stream=two)
    assert results["interpolation"]["wise_ft"]["0"]["alphas"] == []
    # new classes are not
    results, _ = learn([WiSEFT(0.5)], evaluate_future=True)
    assert list(results["interpolation"]["wise_ft"]["0"]["test"]) == ["task 0"]


def test_no_choice_without_validation_data():
    with pytest.raises(InputError, match=r"choose='val' without validation data; expected a validation split. HINT"):
        learn([WiSEFT()], stream=stream())
    with pytest.raises(InputError, match=r"choose='val' without validation data; expected a val_dataloader. HINT"):
        fit(Net(), data(0), WiSEFT())
    with pytest.raises(
        InputError, match=r"monitor='accuracy' of WiSEFT; expected one of \['val_accuracy', 'val_loss'\]"
    ):
        fit_with_validation(Validated(), WiSEFT(monitor="accuracy"))
    with pytest.raises(InputError, match=r"validation values \[None, nan\]; expected at least one number"):
        best_alpha([0.0, 1.0], [None, float("nan")])


def test_reestimated_statistics_in_a_sequence_differ_from_interpolated_ones():
    _, one = learn([WiSEFT(0.5, alphas=[])])
    _, two = learn([WiSEFT(0.5, alphas=[], batch_norm="reestimate")])
    differing = {name for name, value in state_of(one).items() if not torch.equal(value, two.state_dict()[name])}
    assert {"backbone.2.running_mean", "backbone.2.running_var"} <= differing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choose": "test"}, r"choose='test'; expected 'val', 'val_seen' or a number from 0 to 1. HINT"),
        ({"choose": 1.5}, r"choose=1.5; expected 'val', 'val_seen' or a number from 0 to 1. HINT"),
        ({"choose": True}, r"choose=True; expected 'val', 'val_seen' or a number from 0 to 1. HINT"),
        ({"alphas": [0, 2]}, r"alphas=\[0, 2\]; expected numbers from 0 to 1. HINT"),
        ({"alphas": []}, r"alphas=\[\]; expected numbers from 0 to 1. HINT"),
        ({"anchor": "first"}, r"anchor='first'; expected 'previous' or 'pretrained'. HINT"),
        ({"batch_norm": "yes"}, r"batch_norm='yes'; expected 'interpolate' or 'reestimate'. HINT"),
        ({"mode": "up"}, r"mode='up'; expected 'max' or 'min'. HINT"),
        ({"fine_tuned": "("}, r"fine_tuned='\(' .*; expected regular expressions. HINT"),
    ],
)
def test_values_outside_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        WiSEFT(**options)


def test_what_cannot_work_is_refused():
    with pytest.raises(
        InputError, match=r"choose='val_seen' with WiSEFT in a Trainer of 1 process.*HINT: give a fixed"
    ):
        fit(Net(), data(0), WiSEFT("val_seen"))
    with pytest.raises(InputError, match=r"WiSEFT.consolidate without a fit; expected weights before and after"):
        WiSEFT(0.5).consolidate(None, Net())
    with pytest.raises(InputError, match=r"batch_norm='reestimate' with Validated; expected training data, and a"):
        fit(Validated(manual=True), data(0), WiSEFT(0.5, batch_norm="reestimate"))
    wise = WiSEFT(consolidate="manual")
    net = Net()
    fit(net, data(0), wise)
    with pytest.raises(InputError, match=r"WiSEFT.consolidate\(None, ...\) with choose='val'; expected a Trainer"):
        wise.consolidate(None, net)
