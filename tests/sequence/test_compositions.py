"""Two methods in one run: each does its part, and one without weight leaves the other as it is alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl import DER, EWC, WA, FreezingSchedule, LwF, Replay, run_sequence
from tests.finetuning.examples import FEW_EPOCHS, module, stream

Make = Callable[[], Any]

#: two methods, and the first without effect
PAIRS: dict[str, tuple[Make, Make, Make | None]] = {
    "ewc+er": (lambda: EWC(50.0), lambda: Replay(20), lambda: EWC(0.0)),
    "lwf+er": (lambda: LwF(2.0), lambda: Replay(20), lambda: LwF(0.0)),
    "derpp+wa": (lambda: DER(20, 0.5, 0.5), lambda: WA(), lambda: DER(20, 0.0, 0.0)),
    "freezing+er": (lambda: FreezingSchedule(until_epoch=1), lambda: Replay(20), None),
}


def learn(*callbacks: Any) -> tuple[Tensor, dict[str, Any]]:
    net = module()
    results = run_sequence(net, stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]), results


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("order", [1, -1])
def test_both_act(pair: str, order: int) -> None:
    first, second, _ = PAIRS[pair]
    both, results = learn(*[make() for make in (first, second)[::order]])
    assert results["status"] == "finished"
    assert both.isfinite().all()
    for alone in ([first()], [second()], []):
        assert float((both - learn(*alone)[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("pair", [pair for pair, (_, _, without) in PAIRS.items() if without])
def test_the_first_without_effect_is_the_second_alone_to_the_bit(pair: str) -> None:
    _, second, without = PAIRS[pair]
    assert without is not None
    assert torch.equal(learn(without(), second())[0], learn(second())[0])


def test_derpp_and_wa_end_with_new_rows_as_long_as_old_ones() -> None:
    net = module()
    run_sequence(net, stream(), [DER(20, 0.5, 0.5), WA()], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    lengths = net.head.weight.detach().norm(dim=1)
    torch.testing.assert_close(lengths[4:].mean(), lengths[:4].mean())
