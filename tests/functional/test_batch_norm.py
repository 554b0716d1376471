"""Statistics estimated anew, against those computed by hand, and torch's own routine."""

import copy

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_cl.functional import reestimate_batch_norm
from lightning_cl.functional.batch_norm import layers_with_statistics


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4))


def batches() -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, generator=source) * n for n in (8, 6, 7)]


def test_the_first_layers_statistics_are_the_means_of_the_batches():
    net = model()
    assert reestimate_batch_norm(net, batches(), net) == 3
    with torch.no_grad():
        inputs = [net[0](x).double() for x in batches()]
    mean = torch.stack([x.mean(0) for x in inputs]).mean(0)
    variance = torch.stack([x.var(0, unbiased=True) for x in inputs]).mean(0)
    torch.testing.assert_close(net[1].running_mean.double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(net[1].running_var.double(), variance, rtol=1e-5, atol=1e-5)


def test_as_torch_does_it():
    ours, theirs = model(), model()
    reestimate_batch_norm(ours, batches(), ours)
    update_bn(batches(), theirs)
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert torch.equal(a, b), name


def test_dropout_stays_off_and_modes_and_momenta_are_kept():
    net = nn.Sequential(nn.Dropout(0.9), model())
    net.train()
    net[1][1].eval()
    net[1][4].momentum = 0.3
    before = copy.deepcopy(net.state_dict())
    reestimate_batch_norm(net, batches(), net)
    plain = model()
    reestimate_batch_norm(plain, batches(), plain)
    assert torch.equal(net[1][1].running_mean, plain[1].running_mean)
    assert [m.training for m in (net, net[0], net[1][1], net[1][4])] == [True, True, False, True]
    assert (net[1][1].momentum, net[1][4].momentum) == (0.1, 0.3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if "running" not in k and "num" not in k)


def test_only_the_layers_that_are_named():
    net = model()
    before = net[4].running_mean.clone()
    reestimate_batch_norm(net, batches(), net, names=["1"])
    assert net[1].running_mean.any()
    assert torch.equal(net[4].running_mean, before)


def test_no_batches_and_no_layers_change_nothing():
    net = model()
    net(batches()[0])
    before = copy.deepcopy(net.state_dict())
    assert reestimate_batch_norm(net, [], net) == 0
    assert reestimate_batch_norm(net, batches(), net, names=[]) == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert reestimate_batch_norm(nn.Linear(3, 2), batches(), print) == 0


def test_layers_without_statistics_are_left_out():
    net = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.InstanceNorm1d(2), nn.BatchNorm2d(2))
    assert list(layers_with_statistics(net)) == ["2"]
