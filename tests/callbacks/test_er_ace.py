from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cl import DER, ERACE, LwF
from lightning_cl.errors import InputError
from tests.callbacks.logit_examples import Tuples, loader, weights
from tests.callbacks.replay_examples import fit


def data(task: int, n: int = 8) -> list[Any]:
    return Tuples.data(task, torch.float32)[:n]


def test_new_samples_do_not_push_on_the_logits_of_other_classes():
    module = Tuples()
    before = [p.detach().clone() for p in module.net[2].parameters()]
    fit(module, loader(data(1)), ERACE(9, fill="consolidate"), max_epochs=1)
    for old, now in zip(before, module.net[2].parameters(), strict=True):
        assert torch.equal(old[:2], now[:2])
        assert not torch.equal(old[2:], now[2:])


def test_logits_fn_gives_the_current_loss_where_there_is_no_cross_entropy():
    class Margin(Tuples):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.multi_margin_loss(self(batch[0]), batch[1])

    def run(kind: type[Tuples], **options: Any) -> Any:
        module = kind()
        fit(module, loader(data(0)), ERACE(9, fill="consolidate", **options), max_epochs=1)
        return weights(module)

    with pytest.raises(InputError, match=r"that showed no logits to ERACE.*HINT: give logits_fn"):
        run(Margin)
    torch.testing.assert_close(run(Margin, logits_fn=lambda module, batch: (module(batch[0]), batch[1])), run(Tuples))


def test_labels_that_are_no_classes_are_refused():
    class Soft(Tuples):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), F.one_hot(batch[1], 4).float())

    with pytest.raises(InputError, match=r"logits \(6, 4\) and labels \(6, 4\) of torch.float32 for ERACE.*HINT: give"):
        fit(Soft(), loader(data(0)), ERACE(9), max_epochs=1)


def test_others_see_the_logits_before_they_are_masked():
    module, seen = Tuples(), []
    lwf, der = LwF(), DER(9, 0.3)

    class Look(LwF):
        def _distil(self, call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
            logits, _ = self.outputs.current(module, batch)
            seen.append(logits.detach())
            self._tried = False
            return output

    fit(module, loader(data(0)), lwf, der, Look(name="look"), ERACE(9), max_epochs=1)
    assert len(seen) == 8
    assert all(bool((logits > -100).all()) for logits in seen)
    assert bool((der.memory.extras(slice(0, 9))["logits"] > -100).all())
    assert isinstance(module.net, nn.Sequential)
