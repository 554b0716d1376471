"""Deep generative replay inside real Trainers."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import DGR, EWC, FineTuningModule, run_sequence
from tests.callbacks.dgr_examples import Net, as_dict, as_named_tuple, as_triple, as_tuple, data, dgr, read
from tests.callbacks.replay_examples import fit, same
from tests.finetuning.examples import FEW_EPOCHS, module, stream


def learn(
    net: Net, *callbacks: Callback, structure: Callable[..., Any] = as_tuple, tasks: int = 2, **options: Any
) -> Net:
    torch.manual_seed(3)
    for task in range(tasks):
        fit(net, data(task, structure), *callbacks, **options)
    return net


def test_the_first_task_is_bit_identical_to_no_callback():
    results = []
    for callbacks in ([], [dgr()]):
        net = Net(dropout=0.3)
        torch.manual_seed(3)
        trainer = fit(net, data(0), *callbacks)
        results.append((net.weights, torch.get_rng_state(), trainer.callback_metrics["loss"]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1]), "no global random number is drawn"
    assert results[0][2] == results[1][2]


@pytest.mark.parametrize("structure", [as_tuple, as_dict, as_named_tuple])
def test_replays_generated_inputs_with_the_labels_of_the_previous_model(structure: Callable[..., Any]):
    callback, net = dgr(), Net()
    torch.manual_seed(3)
    fit(net, data(0, structure), callback)
    previous, sampled = copy.deepcopy(net.net).eval(), callback.generator.past_decoder
    assert sampled is not None
    decoder = [p.clone() for p in sampled.parameters()]
    net.batches.clear()
    fit(net, data(1, structure), callback)
    assert all(map(torch.equal, decoder, sampled.parameters())) is True
    own, replayed = net.batches[0::2], net.batches[1::2]
    assert len(own) == len(replayed) == 8
    known = torch.cat([read(batch)[0] for task in (0, 1) for batch in data(task, structure)])
    for batch in replayed:
        x, y, _ = read(batch)
        assert type(batch) is type(structure(torch.zeros(1, 4), torch.zeros(1), 0))
        assert (x.shape, y.shape, y.dtype) == ((6, 2, 2), (6,), torch.long)
        assert float((x[:, None] - known[None]).abs().amax((2, 3)).min()) > 1e-6
        assert torch.equal(previous(x).argmax(1), y)
    if structure is as_dict:
        assert replayed[0]["split"] == "train"
    assert callback.replayed == 8 * 6
    naive = learn(Net(), structure=structure)
    assert float((naive.weights - net.weights).abs().max()) > 1e-3


class Line(Net):
    """Loss mean(w x), whose gradient is mean(x)."""

    def __init__(self) -> None:
        super().__init__(optimizer="SGD", lr=1.0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
        nn.init.zeros_(self.net[1].weight)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        return {"loss": self(batch[0]).mean()}


@pytest.mark.parametrize(("options", "k"), [({}, 2), ({}, 3), ({"weights": (0.75, 2.0)}, 2)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_of_the_two_losses(options: dict[str, Any], k: int, accumulate: int):
    callback, net = dgr(**options), Line()
    for task in range(k - 1):
        fit(net, data(task), callback, max_epochs=1)
    before = net.weights.clone()
    net.batches.clear()
    fit(net, data(k - 1), callback, max_epochs=1, accumulate_grad_batches=accumulate)
    current, replayed = options.get("weights", (1 / k, 1 - 1 / k))
    steps = zip(net.batches[0::2], net.batches[1::2], strict=True)
    gradients = [current * own[0].flatten(1).mean(0) + replayed * made[0].flatten(1).mean(0) for own, made in steps]
    # one row of the weights for each of the two outputs
    expected = before - torch.stack(gradients).sum(0).repeat(2) / 2 / accumulate
    torch.testing.assert_close(net.weights, expected)


class Watched(DGR):
    """The inputs and noise that the VAE learns from, and its weights after each step."""

    def watch(self) -> list[tuple[Tensor, Tensor | None, tuple[float, float], Tensor, list[Tensor]]]:
        self.seen: list[Any] = []
        step = self.generator.step

        def watched(x: Tensor, replayed: Tensor | None, weights: tuple[float, float], trainer: Any) -> None:
            random = self.generator._random.get_state()
            step(x, replayed, weights, trainer)
            after = [p.detach().clone() for p in self.generator.vae.parameters()]  # type: ignore[union-attr]
            self.seen.append((x.clone(), replayed, weights, random, after))

        self.generator.step = watched  # type: ignore[method-assign]
        return self.seen


@pytest.mark.parametrize("kept", ["reset", "keep"])
def test_the_generator_learns_as_a_plain_loop_would(kept: Any):
    callback = Watched(hidden=(16,), latent=3, lr=0.01, optimizer_state=kept)
    seen = callback.watch()
    learn(Net(), callback, tasks=3)
    from lightning_cl.finetuning import VAE
    from lightning_cl.functional.seeding import derive_seed, generator

    assert len(seen) == 24  # of three tasks
    vae = VAE((2, 2), (16,), 3, generator=generator(derive_seed(0, "dgr"), "weights"))
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    for i, (x, replayed, _, random, after) in enumerate(seen):
        noise = torch.Generator()
        noise.set_state(random)
        k = i // 8 + 1
        if i % 8 == 0 and kept == "reset":
            optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
        assert (replayed is None) == (k == 1)
        n = len(x) if replayed is None else len(x) + len(replayed)
        drawn = torch.randn(n, 3, generator=noise)
        loss = vae(x, drawn[: len(x)]).mean()
        if replayed is not None:
            loss = loss / k + (1 - 1 / k) * vae(replayed, drawn[len(x) :]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for got, expected in zip(after, vae.parameters(), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_a_weight_of_zero_is_naive():
    naive = learn(Net(dropout=0.3))
    assert torch.equal(learn(Net(dropout=0.3), dgr(weights=(1.0, 0.0))).weights, naive.weights)


def test_each_past_task_is_replayed_under_its_own_id():
    callback, net = dgr(batch_size=5), Net()
    torch.manual_seed(3)
    for task in range(3):
        net.batches.clear()
        previous = copy.deepcopy(net)
        fit(net, data(task, as_triple), callback)
    assert callback.task_ids == callback.past_task_ids == [0, 1, 2]
    for x, y, task in net.batches[1::2]:
        assert task.tolist() == [0] * 5 + [1] * 5
        assert torch.equal(x[:5], x[5:])
        assert torch.equal(y // 2, task)
        assert torch.equal(previous(x, task).argmax(1), y)


@pytest.mark.parametrize("head", ["growing", "multi", "separate", "fixed"])
def test_the_previous_model_of_a_head_that_grew(head: Any):
    options = {"class_names": [f"c{i}" for i in range(6)], "active_classes": "all"} if head == "fixed" else {}
    callback, net = dgr(decoder="gaussian"), module(head=head, **options)
    learned: list[Any] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
            if callback.teacher:
                with callback.teacher.in_place_of(pl_module):
                    # separate heads have a layer more than then
                    now = pl_module.head(pl_module.backbone(x))[:, : before[0].shape[1]]
                learned.append((now, *before))
            assert callback.replayed == steps[-1] if steps else True

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            x = torch.randn(50, 8, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                before[:] = [pl_module.eval().head(pl_module.backbone(x))]
            steps.append(callback.replayed)

    before: list[Any] = []
    steps: list[int] = []
    scenario = {"growing": "class_incremental", "fixed": "class_incremental"}.get(head, "task_incremental")
    from lightning_cl import streams

    tasks = stream(getattr(streams, scenario))
    run_sequence(net, tasks, [callback, Watch()], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert len(learned) == 2
    for now, then in learned:
        assert now.shape == then.shape
        torch.testing.assert_close(now, then)
    assert steps[0] == 0 < steps[1] < steps[2]
    assert callback.past_task_ids == ([0, 1, 2] if head in ("multi", "separate") else [])
    other = module(head=head, **options)
    run_sequence(other, tasks, [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert not torch.equal(other.backbone.layers[1].weight, net.backbone.layers[1].weight)
    assert isinstance(net, FineTuningModule)


@pytest.mark.parametrize("head", ["growing", "multi", "separate", "fixed"])
def test_generated_samples_are_of_earlier_classes_of_their_own_task(head: Any):
    from lightning_cl import streams

    seen: list[tuple[Any, ...]] = []

    class Watch(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            # rows of classes to come would win, were they read
            for name, parameter in pl_module.head.named_parameters():
                if name.endswith("bias") and head == "fixed":
                    parameter.data[len(pl_module.tasks) * 2 :] = 100.0

    class Seen(DGR):
        def _labelled(self, *args: Any) -> Any:
            made, logits = super()._labelled(*args)
            seen.append((self.n_tasks, *made))
            return made, logits

    options = {"class_names": [f"c{i}" for i in range(6)]} if head == "fixed" else {}
    scenario = "class_incremental" if head in ("growing", "fixed") else "task_incremental"
    callbacks = [Seen(decoder="gaussian", hidden=(16,), latent=3), Watch()]
    tasks = stream(getattr(streams, scenario))
    run_sequence(module(head=head, **options), tasks, callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert {n for n, *_ in seen} == {1, 2}
    for n, _, y, *task in seen:
        assert int(y.max()) < 2 * n
        assert not task or torch.equal(y // 2, task[0])


def test_batch_norm_and_dropout_of_the_previous_model_are_in_eval_mode_and_unchanged():
    class Normed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 6))

    callback, net = dgr(weights=(1.0, 0.0)), Normed()
    fit(net, data(0), callback)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    kept = {name: value.clone() for name, value in callback.teacher.tensors.items()}
    net.train()
    x = torch.rand(4, 2, 2)
    with callback.teacher.in_place_of(net):
        assert torch.equal(net(x), net(x))
    assert net.net[2].training
    assert same(state, dict(net.state_dict()))
    assert same(kept, callback.teacher.tensors)
    assert set(kept) == set(state)


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
    ],
)
def test_trainers(options: dict[str, Any]):
    callback = dgr()
    weights = learn(Net(), callback, **options).weights
    assert weights.isfinite().all()
    assert {p.dtype for p in callback.generator.vae.parameters()} == {torch.float32}  # type: ignore[union-attr]
    assert float((weights - learn(Net(), **options).weights).abs().max()) > 1e-3


def test_beside_a_penalty():
    both = learn(Net(), dgr(), EWC(50.0)).weights
    for alone in (dgr(), EWC(50.0)):
        assert not torch.equal(both, learn(Net(), alone).weights)


def test_the_seed_decides():
    one, two, other = (learn(Net(), dgr(seed=seed)).weights for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_more_steps_of_the_generator():
    callback = Watched(hidden=(16,), latent=3, lr=0.01, generator_steps=3)
    seen = callback.watch()
    learn(Net(), callback)
    assert len(seen) == 2 * 3 * 8
    assert not torch.equal(seen[-1][1], seen[-2][1])  # type: ignore[arg-type]


def test_nothing_is_left_on_the_module():
    net = learn(Net(), dgr())
    assert "training_step" not in vars(net)
    assert set(net.state_dict()) == set(Net().state_dict())


@pytest.mark.parametrize("kept", ["reset", "keep"])
def test_bytes_of_state(kept: Any):
    callback = dgr(optimizer_state=kept)
    learn(Net(), callback)
    parameters = sum(p.numel() for p in callback.generator.vae.parameters())  # type: ignore[union-attr]
    decoder = 3 * 16 + 16 + 16 * 4 + 4
    steps = 4 * len(callback.generator.optimizer.state)  # type: ignore[union-attr]
    copies = {"reset": 1, "keep": 3}[kept]
    assert callback.nbytes == 4 * (copies * parameters + decoder + len(Net().weights)) + steps
    saved = [t for t in torch.utils._pytree.tree_leaves(callback.state_dict()) if isinstance(t, Tensor)]
    assert sum(t.nbytes for t in saved) == callback.nbytes + callback.generator._random.get_state().nbytes


def test_the_next_task_can_be_another_process(tmp_path: Any):
    torch.manual_seed(3)
    net, first = Net(), dgr(state_path=tmp_path / "dgr.pt")
    fit(net, data(0), first)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    fit(net, data(1), first)
    (tmp_path / "dgr.pt").rename(tmp_path / "second.pt")
    again, second = Net(), dgr()
    again.load_state_dict(state)
    torch.manual_seed(3)
    fit(Net(), data(0), start := dgr(state_path=tmp_path / "dgr.pt"))
    assert start.n_tasks == 1
    torch.set_rng_state(random)
    second.state_path = tmp_path / "dgr.pt"
    fit(again, data(1), second)
    assert second.n_tasks == 2
    assert torch.equal(again.weights, net.weights)
    assert same(second.state_dict(), first.state_dict())
    assert same(torch.load(tmp_path / "second.pt", weights_only=True), first.state_dict())
