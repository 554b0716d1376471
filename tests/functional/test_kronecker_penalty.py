"""The penalty on a layer against autograd of the quadratic form with the explicit Kronecker product, in float64."""

import pytest
import torch
from torch import Tensor, nn

from lightning_cl.functional._kronecker_layer import MatrixLayer
from lightning_cl.functional.kfac import KroneckerFactors
from lightning_cl.functional.kronecker_penalty import KroneckerPenalty

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), MatrixLayer("weight", "bias")),
    "linear without bias": (lambda: nn.Linear(4, 3, bias=False), MatrixLayer("weight")),
    "conv": (lambda: nn.Conv2d(2, 3, (3, 2), stride=2, padding=1), MatrixLayer("weight", "bias")),
    "conv without bias": (lambda: nn.Conv1d(2, 3, 3, bias=False), MatrixLayer("weight")),
}


def positive(n: int, seed: int) -> Tensor:
    root = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T


def random(part: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in part.named_parameters()
    }


def factors(layer: MatrixLayer, parameters: dict[str, Tensor], seed: int) -> KroneckerFactors:
    out, size = layer.matrix(parameters).shape
    return KroneckerFactors(layer, positive(size, seed), positive(out, seed + 1000))


def oracle(parameters: dict[str, Tensor], tasks: list[tuple[Tensor, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Autograd of ``1/2 sum_t vec(W - W_t)^T H_t vec(W - W_t)``, with columns stacked and the bias first."""

    def vec(values: dict[str, Tensor]) -> Tensor:
        columns = [values["bias"][:, None]] if "bias" in values else []
        return torch.cat([*columns, values["weight"].flatten(1)], 1).T.reshape(-1)

    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    value = sum((vec(leaves) - vec(anchor)) @ h @ (vec(leaves) - vec(anchor)) / 2 for h, anchor in tasks)
    return dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def check_gradient(penalty: KroneckerPenalty, parameters: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    gradient = penalty.gradient(penalty.layer.matrix(parameters))
    for name, value in expected.items():
        found = penalty.layer.part(name, gradient, parameters[name])
        assert found.shape == value.shape
        assert float((found - value).norm()) <= 1e-10 * max(1.0, float(value.norm()))


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("n_tasks", [1, 3])
def test_gradient_is_that_of_the_explicit_product(case: str, n_tasks: int):
    build, layer = LAYERS[case]
    part = build()
    anchors = [random(part, seed) for seed in range(n_tasks)]
    blocks = [factors(layer, anchor, seed) for seed, anchor in enumerate(anchors)]
    penalty = KroneckerPenalty.of(blocks[0], anchors[0])
    for block, anchor in zip(blocks[1:], anchors[1:], strict=True):
        penalty = penalty.with_task(block, anchor)
    parameters = random(part, 99)
    explicit = [(torch.kron(b.A, b.G), anchor) for b, anchor in zip(blocks, anchors, strict=True)]
    check_gradient(penalty, parameters, oracle(parameters, explicit))
    assert penalty.n_tasks == len(penalty.A) == n_tasks
    matrices = 1 if n_tasks == 1 else 2
    out, size = penalty.anchor.shape
    assert penalty.nbytes == 8 * (n_tasks * (out**2 + size**2) + matrices * out * size)


@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("how", ["of", "with_task", "with_summed"])
def test_the_anchor_does_not_follow_the_live_weights(case: str, how: str):
    build, layer = LAYERS[case]
    live = random(build(), 0)
    block = factors(layer, live, 0)
    penalty = KroneckerPenalty.of(block, live)
    if how != "of":
        penalty = getattr(penalty, how)(block, live)
    assert not bool(penalty.gradient(layer.matrix(live)).any())
    for value in live.values():
        value += 1.0
    assert bool(penalty.gradient(layer.matrix(live)).any())


def test_a_transposed_weight_is_the_same_matrix():
    build, layer = LAYERS["linear"]
    anchor, parameters = random(build(), 0), random(build(), 1)
    block = factors(layer, anchor, 2)
    plain = KroneckerPenalty.of(block, anchor).gradient(layer.matrix(parameters))
    turned = MatrixLayer("weight", "bias", transposed=True)
    flip = [{**values, "weight": values["weight"].T} for values in (anchor, parameters)]
    penalty = KroneckerPenalty.of(KroneckerFactors(turned, block.A, block.G), flip[0])
    gradient = penalty.gradient(turned.matrix(flip[1]))
    torch.testing.assert_close(turned.part("weight", gradient, flip[1]["weight"]).T, plain[:, 1:])
    torch.testing.assert_close(turned.part("bias", gradient, flip[1]["bias"]), plain[:, 0])


def test_summed_factors_are_exact_for_tasks_with_equal_ones():
    build, layer = LAYERS["conv"]
    anchors = [random(build(), seed) for seed in range(3)]
    block = factors(layer, anchors[0], 7)
    penalty = KroneckerPenalty.of(block, anchors[0])
    one = penalty.nbytes
    for anchor in anchors[1:]:
        penalty = penalty.with_summed(block, anchor)
    parameters = random(build(), 99)
    check_gradient(penalty, parameters, oracle(parameters, [(3 * torch.kron(block.A, block.G), anchors[-1])]))
    assert penalty.nbytes == one, "memory does not grow with tasks"
    assert penalty.n_tasks == 3


def test_summed_factors_are_the_mean_of_the_inputs_and_the_sum_of_the_gradients():
    build, layer = LAYERS["linear"]
    anchors = [random(build(), seed) for seed in range(3)]
    blocks = [factors(layer, anchors[0], seed) for seed in range(3)]
    penalty = KroneckerPenalty.of(blocks[0], anchors[0])
    for block, anchor in zip(blocks[1:], anchors[1:], strict=True):
        penalty = penalty.with_summed(block, anchor)
    torch.testing.assert_close(penalty.A[0], sum(block.A for block in blocks) / 3)
    torch.testing.assert_close(penalty.G[0], sum(block.G for block in blocks))


def test_new_rows_of_a_head_are_free_and_the_old_ones_pulled_as_before():
    build, layer = LAYERS["linear"]
    first, second = random(build(), 0), random(build(), 1)
    penalty = KroneckerPenalty.of(factors(layer, first, 0), first).with_task(factors(layer, second, 1), second)
    parameters = random(nn.Linear(4, 5), 2)
    old = {name: value[:3] for name, value in parameters.items()}
    grown = penalty.grown(parameters)
    gradient = grown.gradient(layer.matrix(parameters))
    torch.testing.assert_close(gradient[:3], penalty.gradient(layer.matrix(old)))
    assert torch.equal(gradient[3:], torch.zeros(2, 5, dtype=torch.float64))
    # and a task with the new rows fits to it
    block = factors(layer, parameters, 3)
    third = penalty.with_task(block, parameters)
    later = random(nn.Linear(4, 5), 4)
    expected = grown.gradient(layer.matrix(later)) + KroneckerPenalty.of(block, parameters).gradient(
        layer.matrix(later)
    )
    torch.testing.assert_close(third.gradient(layer.matrix(later)), expected)


@pytest.mark.parametrize("first_has_it", [True, False])
@pytest.mark.parametrize("how", ["with_task", "with_summed"])
def test_a_bias_may_come_or_go_between_tasks(first_has_it: bool, how: str):
    part = nn.Linear(4, 3)
    anchors = [random(part, seed) for seed in range(2)]
    layers = [MatrixLayer("weight", "bias"), MatrixLayer("weight")]
    layers = layers if first_has_it else layers[::-1]
    blocks = [factors(layer, anchors[0], seed) for seed, layer in enumerate(layers)]
    penalty = getattr(KroneckerPenalty.of(blocks[0], anchors[0]), how)(blocks[1], anchors[1])
    parameters = random(part, 9)
    wide = [b.A if b.layer.bias else torch.block_diag(b.A.new_zeros(1, 1), b.A) for b in blocks]
    if how == "with_task":
        explicit = [(torch.kron(a, b.G), anchor) for a, b, anchor in zip(wide, blocks, anchors, strict=True)]
    else:
        explicit = [(torch.kron((wide[0] + wide[1]) / 2, blocks[0].G + blocks[1].G), anchors[1])]
    check_gradient(penalty, parameters, oracle(parameters, explicit))


def test_the_largest_curvature_is_the_largest_eigenvalue():
    build, layer = LAYERS["linear"]
    anchors = [random(build(), seed) for seed in range(2)]
    blocks = [factors(layer, anchor, seed) for seed, anchor in enumerate(anchors)]
    penalty = KroneckerPenalty.of(blocks[0], anchors[0]).with_task(blocks[1], anchors[1])
    largest = float(torch.linalg.eigvalsh(sum(torch.kron(b.A, b.G) for b in blocks)).max())
    assert 0.99 * largest <= penalty.largest_curvature(steps=50) <= largest * (1 + 1e-9)


def test_state_is_tensors_and_primitives(tmp_path):
    build, layer = LAYERS["conv"]
    anchors = [random(build(), seed) for seed in range(2)]
    penalty = KroneckerPenalty.of(factors(layer, anchors[0], 0), anchors[0]).with_task(
        factors(layer, anchors[1], 1), anchors[1]
    )
    torch.save(penalty.state(), tmp_path / "state.pt")
    again = KroneckerPenalty.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert again.layer == layer
    matrix = layer.matrix(random(build(), 5))
    assert torch.equal(again.gradient(matrix), penalty.gradient(matrix))
    assert again.n_tasks == 2
