import math

import pytest
import torch

from lightning_cl.functional import accuracy_matrix as am

# worked by hand
ROWS = [[0.9, 0.5, 0.4], [0.7, 0.8, 0.6], [0.5, 0.75, 1.0]]
LAST_ONLY = [[None] * 3, [None] * 3, [0.5, 0.75, 1.0]]


@pytest.mark.parametrize("as_tensor", [False, True])
def test_hand_worked(as_tensor):
    rows = torch.tensor(ROWS, dtype=torch.float64) if as_tensor else ROWS
    assert am.average_accuracy(rows) == pytest.approx(0.75)
    assert am.average_incremental_accuracy(rows) == pytest.approx((0.9 + 0.75 + 0.75) / 3)
    assert am.forgetting(rows) == pytest.approx((0.4 + 0.05) / 2)
    assert am.backward_transfer(rows) == pytest.approx((-0.4 - 0.05) / 2)
    assert am.learning_accuracy(rows) == pytest.approx(0.9)
    assert am.forward_transfer(rows, [0.1, 0.2, 0.3]) == pytest.approx((0.3 + 0.3) / 2)


def test_forgetting_is_from_the_best_not_from_the_diagonal():
    rows = [[0.6, None, None], [0.9, 0.5, None], [0.7, 0.5, 0.5]]
    assert am.forgetting(rows) == pytest.approx((0.2 + 0.0) / 2)
    assert am.backward_transfer(rows) == pytest.approx((0.1 + 0.0) / 2)


def test_only_the_last_row():
    assert am.average_accuracy(LAST_ONLY) == pytest.approx(0.75)
    for function in (am.average_incremental_accuracy, am.forgetting, am.backward_transfer, am.learning_accuracy):
        assert math.isnan(function(LAST_ONLY))
    assert math.isnan(am.forward_transfer(LAST_ONLY, [0.1] * 3))


def test_one_task():
    assert am.average_accuracy([[0.5]]) == am.learning_accuracy([[0.5]]) == am.average_incremental_accuracy([[0.5]])
    for value in (am.forgetting([[0.5]]), am.backward_transfer([[0.5]]), am.forward_transfer([[0.5]], [0.1])):
        assert math.isnan(value)


def test_forward_transfer_needs_its_entries():
    assert math.isnan(am.forward_transfer(ROWS, None))
    assert math.isnan(am.forward_transfer([[0.9, None], [0.5, 0.8]], [0.5, 0.5]))


def test_min_accuracy():
    # task 0's own training does not count, nor does the evaluation of a task while it is learned
    assert am.min_accuracy([0, 1, 1, 2], [[0.1], [0.3, 0.0], [0.8, 0.9], [0.6, 0.2, 0.0]]) == pytest.approx(0.25)
    assert math.isnan(am.min_accuracy([0, 0], [[0.1], [0.2]]))
    assert math.isnan(am.min_accuracy([], []))
    assert am.min_accuracy([0, 1, 1], [[0.9], [None, 0.2], [0.7, 0.8]]) == pytest.approx(0.7)


@pytest.mark.parametrize("rows", [[], [[0.5, 0.4]], [[0.5], [0.4, 0.3]], torch.rand(3)])
def test_not_a_matrix(rows):
    with pytest.raises(ValueError, match=r"accuracy matrix of shape .*expected \(T, T\).*HINT"):
        am.average_accuracy(rows)


def test_wrong_lengths():
    with pytest.raises(ValueError, match=r"random_init of length 2; expected 3.*HINT"):
        am.forward_transfer(ROWS, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"1 tasks and 0 rows.*HINT"):
        am.min_accuracy([0], [])
