"""Scores against scikit-learn, and the samples they are computed on."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.logme import logme
from lightning_cl.selection.samples import balanced_indices, samples_of
from lightning_cl.selection.scores import STRENGTHS, score_features
from lightning_cl.streams import TensorData
from lightning_cl.streams.task import Task


def problem(n: int = 150, spread: float = 1.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(9))[labels] + spread * torch.randn(
        n, 6, generator=rng
    ), labels


def test_with_validation_data_the_probe_is_scikit_learns():
    (x, y), (z, t) = problem(), problem(90, seed=1)
    found = score_features(x, y, (z, t))
    mean, deviation = x.mean(0), x.std(0)
    a, b = ((part - mean) / deviation for part in (x, z))
    accuracies = [LogisticRegression(C=c, max_iter=1000).fit(a, y).score(b, t) for c in STRENGTHS]
    assert found.probe == pytest.approx(max(accuracies), abs=1.1 / 90)
    assert found.strength == STRENGTHS[accuracies.index(max(accuracies))]
    assert found.logme == logme(x, y, intercept=True)


def test_without_every_sample_is_held_out_once():
    x, y = problem()
    found = score_features(x, y)
    assert 0.6 < found.probe < 1
    assert 0.5 < found.knn < 1
    assert score_features(x, y) == found
    # the label itself as a feature would be right always, noise never better than chance
    assert score_features(torch.nn.functional.one_hot(y).float(), y).probe == 1.0
    noise = torch.randn(len(y), 5, generator=torch.Generator().manual_seed(3))
    assert score_features(noise, y).probe < 0.5


def test_a_feature_that_never_changes_does_no_harm():
    x, y = problem()
    wide = torch.cat([x, torch.full((len(x), 1), 3.0)], dim=1)
    assert score_features(wide, y).probe == pytest.approx(score_features(x, y).probe, abs=0.02)


def test_a_class_of_one_sample_is_no_obstacle():
    x, y = problem()
    y = y.clone()
    y[0] = 7
    assert 0 < score_features(x, y).probe < 1


def task(labels: Tensor, id: int = 0, validation: bool = False) -> Task:
    data = TensorData(torch.arange(len(labels)).float()[:, None], labels)
    names = tuple(str(i) for i in labels.unique().tolist())
    held = data if validation else None
    return Task(id, f"task {id}", names, tuple(labels.unique().tolist()), data, held, data)


def test_a_subset_is_balanced_seeded_and_in_order():
    labels = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)
    chosen = balanced_indices(labels, 30, 0)
    assert labels[chosen].bincount().tolist() == [13, 12, 5]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(balanced_indices(labels, 30, 0), chosen)
    assert not torch.equal(balanced_indices(labels, 30, 1), chosen)
    found = samples_of([task(labels, validation=True)], 30, 0)
    assert (len(found.train), len(found.validation or [])) == (30, 30)
    assert len(samples_of([task(labels)], None, 0).train) == 100


def test_tasks_are_taken_together_and_one_class_is_refused():
    first, second = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.long)
    found = samples_of([task(first), task(second, 1)], None, 0)
    assert found.train.targets.bincount().tolist() == [10, 10]
    with pytest.raises(InputError, match="10 samples of 1 class; expected samples of two classes at least"):
        samples_of([task(first)], None, 0)
