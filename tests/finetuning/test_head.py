import torch

from lightning_cl.finetuning import ClassifierHead


def test_growth_keeps_old_rows_bit_for_bit() -> None:
    head = ClassifierHead(5, ["a", "b"])
    with torch.no_grad():
        head.weight.normal_()
        head.bias.normal_()
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    assert head.add_classes(["b", "c", "c", "d"]) == 2
    assert head.class_names == ["a", "b", "c", "d"]
    assert torch.equal(head.weight[:2], weight)
    assert torch.equal(head.bias[:2], bias)
    assert head.add_classes(["a"]) == 0


def test_rows_do_not_depend_on_arrival_nor_on_global_state() -> None:
    torch.manual_seed(1)
    one = ClassifierHead(7, ["a", "b", "c"], seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = ClassifierHead(7, ["c"], seed=3)
    other.add_classes(["b"])
    other.add_classes(["a"])
    assert torch.equal(torch.get_rng_state(), before)
    for i, name in enumerate(other.class_names):
        assert torch.equal(other.weight[i], one.weight[one.class_names.index(name)])
        assert torch.equal(other.bias[i], one.bias[one.class_names.index(name)])
    assert not torch.equal(one.weight[0], one.weight[1])
    assert not torch.equal(ClassifierHead(7, ["a"], seed=4).weight[0], one.weight[0])


def test_new_rows_have_the_distribution_of_a_linear_layer() -> None:
    head = ClassifierHead(16, [str(i) for i in range(500)])
    values = head.weight.detach().flatten()
    assert float(values.abs().max()) <= 0.25
    assert abs(float(values.std()) - 0.25 / 3**0.5) < 0.003  # of U(-1/4, 1/4), 8000 draws
    assert abs(float(values.mean())) < 0.01


def test_growth_keeps_dtype_and_what_requires_a_gradient() -> None:
    head = ClassifierHead(4, ["a"]).to(torch.bfloat16).requires_grad_(False)
    head.add_classes(["b"])
    assert head.weight.dtype == head.bias.dtype == torch.bfloat16
    assert not head.weight.requires_grad
    assert not head.bias.requires_grad
    assert head(torch.ones(3, 4, dtype=torch.bfloat16)).shape == (3, 2)
