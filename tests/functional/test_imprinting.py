import pytest
import torch
from sklearn.cluster import KMeans

from lightning_cl.functional.imprinting import imprinted_rows


def features(n: int = 40, d: int = 4) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def test_one_vector_is_the_mean_direction():
    x = features()
    expected = torch.stack([row / row.double().norm() for row in x.double()]).mean(0)
    torch.testing.assert_close(imprinted_rows(x)[0].double(), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(imprinted_rows(x * 7), imprinted_rows(x))


def test_several_vectors_are_centres_of_clusters_and_a_function_of_the_seed():
    x = features()
    before = torch.get_rng_state()
    found = imprinted_rows(x, 3, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found, imprinted_rows(x, 3, seed=5))
    directions = x.double() / x.double().norm(dim=1, keepdim=True)
    nearest = torch.cdist(directions, found.double()).argmin(1)
    for k in range(3):
        torch.testing.assert_close(found[k].double(), directions[nearest == k].mean(0), rtol=0, atol=1e-5)
    best = KMeans(3, n_init=10, random_state=0).fit(directions.numpy()).inertia_
    assert float((directions - found[nearest]).square().sum()) < 1.3 * best


def test_fewer_features_than_vectors_are_taken_again():
    x = torch.eye(2)
    assert imprinted_rows(x, 5).tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]
    assert imprinted_rows(x[:1].expand(9, 2), 3).tolist() == [[1, 0]] * 3


def test_refusal():
    with pytest.raises(ValueError, match=r"features of shape \(0, 3\); expected \(M, d\), M >= 1. HINT:"):
        imprinted_rows(torch.zeros(0, 3))
