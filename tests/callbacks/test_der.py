import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import DER, FineTuningModule, Replay, run_sequence
from lightning_cl.errors import InputError
from tests.callbacks.logit_examples import HuggingFace, Tuples, loader, weights
from tests.callbacks.replay_examples import fit
from tests.finetuning.examples import FEW_EPOCHS, stream
from tests.finetuning.examples import module as growing_module


def data(task: int, n: int = 8) -> list[Any]:
    return Tuples.data(task, torch.float32)[:n]


class Before(Callback):
    """The weights with which each step was computed."""

    def __init__(self) -> None:
        self.nets: list[nn.Module] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.nets.append(copy.deepcopy(pl_module.net))


def test_samples_are_stored_with_the_logits_of_the_step_that_saw_them():
    der, before = DER(100, 0.3), Before()
    fit(Tuples(), loader(data(0)), before, der, max_epochs=2)
    assert der.memory.n_seen == 48, "the first epoch only"
    rows, extras = der.memory.at(slice(0, 48)), der.memory.extras(slice(0, 48))
    for i, (x, y) in enumerate(data(0)):
        here = slice(6 * i, 6 * i + 6)
        assert torch.equal(rows["0"][here], x)
        assert torch.equal(rows["1"][here], y)
        torch.testing.assert_close(extras["logits"][here], before.nets[i](x))
    assert der.nbytes == 48 * (3 * 4 + 8 + 8 + 4 * 4 + 8)
    torch.testing.assert_close(extras["widths"], torch.full((48,), 4))


def test_the_end_of_a_task_stores_the_trained_models_logits_in_eval_mode():
    class Dropped(Tuples):
        def __init__(self) -> None:
            super().__init__()
            self.net.insert(2, nn.Dropout(0.5))
            self.net.insert(3, nn.BatchNorm1d(8))
            self.steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return super().training_step(batch, batch_idx)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] + 1, batch[1]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 2, batch[1]

    module, der = Dropped(), DER(100, 0.3, fill="consolidate")
    fit(module, loader(data(0)), der, max_epochs=1)
    assert module.steps == 8, "the pass leaves no trace"
    rows, extras = der.memory.at(slice(0, 48)), der.memory.extras(slice(0, 48))
    assert module.net[3].num_batches_tracked == 8
    torch.testing.assert_close(extras["logits"], module.eval().net(rows["0"] * 2))
    assert torch.equal(rows["0"], torch.cat([x for x, _ in data(0)]) + 1)


def test_two_independent_draws():
    class Look(DER):
        pairs: list[tuple[Tensor, ...]]

        def _replay(self, call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
            self.pairs.append(tuple(drawn.slots for drawn in self.drawn))
            return super()._replay(call, batch, batch_idx, output)

    for alpha, beta, n in ((0.3, 0.7, 2), (0.3, 0.0, 1), (0.0, 0.7, 1), (0.0, 0.0, 0)):
        der = Look(30, alpha, beta, batch_size=5)
        der.pairs = []
        fit(Tuples(), loader(data(0)), der, max_epochs=1)
        assert [len(pair) for pair in der.pairs] == [0] + [n] * 7
        assert all(len(set(slots.tolist())) == 5 for pair in der.pairs for slots in pair)
        if n == 2:
            assert any(not torch.equal(*pair) for pair in der.pairs[1:])


def test_without_weights_it_is_naive_to_the_bit():
    results = []
    for callbacks in ([], [DER(9, 0.0, 0.0)]):
        module = Tuples()
        torch.manual_seed(1)
        for task in range(2):
            fit(module, loader(data(task)), *callbacks, max_epochs=2)
        results.append((weights(module), torch.get_rng_state()))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_head_that_grows_is_compared_over_the_width_that_was_stored():
    class Look(DER):
        losses: list[float]

        def _replay(self, call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
            with torch.no_grad():
                for drawn in self.drawn:
                    now, _ = self._module.all_logits(drawn.batch)
                    widths = drawn.extras["widths"].tolist()
                    stored = drawn.extras["logits"]
                    terms = [F.mse_loss(now[i, :w], stored[i, :w], reduction="sum") for i, w in enumerate(widths)]
                    self.losses.append(float(sum(terms)) / sum(widths))
                    self.widths |= set(widths)
            before = float(output)
            after = super()._replay(call, batch, batch_idx, output)
            if self.drawn:
                assert float(after) - before == pytest.approx(0.3 * self.losses[-1], rel=1e-4, abs=1e-6)
            return after

    der = Look(12, 0.3)
    der.losses, der.widths = [], set()
    model = growing_module()
    run_sequence(model, stream(), [der], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert der.widths == {2, 4, 6}
    naive = growing_module()
    run_sequence(naive, stream(), [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert not torch.equal(naive.head.weight, model.head.weight)
    assert isinstance(model, FineTuningModule)
    assert der.memory.extras(slice(0, 1))["logits"].shape == (1, 6)


@pytest.mark.parametrize("options", [{"head": "multi"}, {"head": "fixed", "active_classes": "all"}, {}])
def test_all_rows_are_stored_also_those_that_the_loss_does_not_read(options: dict[str, Any]):
    names = [f"c{i}" for i in range(6)]
    model, der = growing_module(class_names=names, **options), DER(12, 0.3, fill="consolidate")
    from tests.finetuning.examples import blobs

    tasks = stream()
    if options.get("head") == "multi":
        from lightning_cl.streams import task_incremental

        tasks = task_incremental(blobs(), 3)
    run_sequence(model, tasks, [der], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, limit_tasks=1)
    extras = der.memory.extras(slice(0, 12))
    assert bool((extras["logits"].abs() < 100).all())
    x = der.memory.at(slice(0, 12))["0"]
    torch.testing.assert_close(extras["logits"], model.eval().head(model.backbone(x)))


def test_a_skipped_step_stores_nothing():
    class Skips(Tuples):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    der = DER(100, 0.3, 0.7)
    fit(Skips(), loader(data(0)), der, max_epochs=1)
    assert der.memory.n_seen == 24


def test_padded_token_batches_of_several_lengths():
    der = DER(20, 0.3, 0.7)
    fit(HuggingFace(), loader(HuggingFace.data(0, torch.float32)), der, max_epochs=1)
    assert der.memory.at(slice(0, 20))["input_ids"].shape == (20, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, r"alpha=-1.0; expected a finite number >= 0. HINT: try alpha=0.5"),
        ({"alpha": 0.5, "beta": float("nan")}, r"beta=nan; expected a finite number >= 0. HINT"),
        ({"memory_size": -1}, r"memory_size=-1; expected an integer >= 0.*. HINT"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        DER(**({"memory_size": 10} | options))


def test_logits_that_are_not_one_row_per_sample_are_refused():
    class Tokens(Tuples):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]).repeat(2, 1), batch[1].repeat(2))

    with pytest.raises(
        InputError, match=r"12 rows of logits for a batch of 6 samples; expected one row.*HINT: give log"
    ):
        fit(Tokens(), loader(data(0)), DER(10), max_epochs=1)
    with pytest.raises(
        InputError, match=r"12 rows of logits for a batch of 6 samples.*HINT: .*Replay\(mode='separate'\)"
    ):
        fit(Tuples(), loader(data(0)), Replay(10, fill="step"), DER(10), max_epochs=1)
    der, replay = DER(10), Replay(10, fill="step", mode="separate")
    fit(Tuples(), loader(data(0)), replay, der, max_epochs=1)
    assert der.memory.n_seen == replay.memory.n_seen == 48
