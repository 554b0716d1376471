"""Do the directions that the literature reports for fine-tuning hold on a small network trained here?

    python scripts/finetune_directions.py --data-dir DIR --seeds 5 --out directions.json

MNIST at 14 x 14 pixels (without --data-dir: scikit-learn's digits), a convolutional network of three blocks. Learning
rates are chosen on validation images, for each way of training by itself; nothing is chosen on test images.

- lp_ft: features learnt on corrupted images of 0 to 4, fine-tuned on a few clean images of 5 to 9; out of distribution
  are the corruptions (Kumar et al. 2022: LP-FT is better there than full fine-tuning, and as good within).
- surgical: a network of all digits learns a corruption, or the labels in reverse, from a few images, with one part of
  it trained (Lee et al. 2022: the first block is best for the first, the last layer for the second).
- wise_ft: a network that has seen a few corrupted images of all digits is fine-tuned on more clean ones; between the
  weights before and after, which alpha is best on corrupted ones? (Wortsman et al. 2022: one inside.)
- l2sp: with lambda 0, the weights are those of full fine-tuning to the bit.
"""

import argparse
import copy
import json
import logging
import statistics
import warnings
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_cl import L2SP, FineTuningModule, FreezingSchedule
from lightning_cl.functional import interpolate
from lightning_cl.streams import Classification, TaskDataModule, TensorData, data_incremental, digits, mnist, subset
from lightning_cl.streams.corruptions import Corruption
from lightning_cl.streams.splitting import stratified_shares

KINDS = ["gaussian_noise", "impulse_noise", "blur", "fog", "contrast"]
PARTS = {f"block {i}": rf"re:^backbone\.block{i}$" for i in (1, 2, 3)} | {"last layer": "re:^head$", "all": "all"}
RATES = [5e-4, 2e-3, 8e-3]
ALPHAS = [i / 10 for i in range(11)]


class Blocks(nn.Module):
    """Three blocks of two convolutions each, with norms; features (N, 64)."""

    feature_dim = 64

    def __init__(self, norm: str) -> None:
        super().__init__()
        for i, (before, after) in enumerate(((1, 16), (16, 32), (32, 64)), start=1):
            layers: list[nn.Module] = []
            for width in (before, after):
                normed = nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(4, after)
                layers += [nn.Conv2d(width, after, 3, padding=1), normed, nn.ReLU()]
            setattr(self, f"block{i}", nn.Sequential(*layers, nn.MaxPool2d(2) if i < 3 else nn.AdaptiveAvgPool2d(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of images (N, 1, H, W)."""
        return self.block3(self.block2(self.block1(x))).flatten(1)


class Mixed:
    """Each image under one of the corruptions, and some as they are."""

    name = "mixed"

    def __init__(self, severity: int) -> None:
        self.corruptions = [Corruption(kind, severity) for kind in KINDS]

    def __call__(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """A sixth of the images is left as it is."""
        out = x.clone()
        for i, corruption in enumerate(self.corruptions):
            rows = ids % (len(KINDS) + 1) == i
            out[rows] = corruption(x[rows], ids[rows])
        return out


def main() -> None:
    options = parser().parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    found: dict[str, list[dict]] = {name: [] for name in options.directions}
    for seed in range(options.seeds):
        data = images(options.data_dir, seed)
        for name in options.directions:
            found[name].append(DIRECTIONS[name](data, seed, options))
            print(f"seed {seed}  {name}  {found[name][-1]}", flush=True)
            if options.out:
                Path(options.out).write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nmean and standard deviation over {options.seeds} seeds; accuracy (%) unless said otherwise")
    for name, runs in found.items():
        for key in runs[0]:
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{name:<9} {key:<34} {statistics.mean(values):7.2f} +- {spread:.2f}")


def lp_ft(data, seed: int, options) -> dict[str, float]:
    source = task(data["source"], range(5), 400, seed, Mixed(3))
    few, epochs = task(data["target"], range(5, 10), 40, seed), round(30 * options.effort)
    source_module = fitted(new(source, seed, options), source, round(10 * options.effort), 2e-3, seed)
    start = new(few, seed, options)
    start.backbone.load_state_dict(source_module.backbone.state_dict())
    probe = best_of(start, few, epochs, seed, "re:^head$", rates=[2e-3, 8e-3, 3e-2])
    ways = {
        "probe": probe,
        "LP-FT": best_of(probe, few, epochs, seed, "all"),
        "full": best_of(start, few, epochs, seed, "all"),
    }
    scores = {}
    for name, module in ways.items():
        scores[f"{name}, in distribution"] = accuracy(module, few.test)
        shifted = [task(data["target"], range(5, 10), 40, seed, Corruption(kind, 3)).test for kind in KINDS]
        scores[f"{name}, out of distribution"] = statistics.mean(accuracy(module, part) for part in shifted)
    return scores


def surgical(data, seed: int, options) -> dict[str, float]:
    source = task(data["source"], range(10), 300, seed)
    module = fitted(new(source, seed, options), source, round(8 * options.effort), 2e-3, seed)
    scores = {}
    shifts = {kind: {"transform": Corruption(kind, 4)} for kind in ("gaussian_noise", "fog")}
    for shift, how in (shifts | {"labels in reverse": {"reverse": True}}).items():
        few = task(data["target"], range(10), options.labels, seed, **how)
        scores[f"{shift}: nothing"] = accuracy(module, few.test)
        for part, thaw in PARTS.items():
            tuned = best_of(module, few, round(30 * options.effort), seed, thaw)
            scores[f"{shift}: {part}"] = accuracy(tuned, few.test)
    return scores


def wise_ft(data, seed: int, options) -> dict[str, float]:
    source = task(data["source"], range(10), 30, seed, Mixed(3))
    before = fitted(new(source, seed, options), source, round(30 * options.effort), 2e-3, seed)
    few = task(data["target"], range(10), 100, seed)
    after = best_of(before, few, round(15 * options.effort), seed, "all")
    shifted = [task(data["target"], range(10), 100, seed, Corruption(kind, 3)).test for kind in KINDS]
    scores, between = {}, copy.deepcopy(before)
    for alpha in ALPHAS:
        between.load_state_dict(interpolate(before.state_dict(), after.state_dict(), alpha))
        scores[f"in distribution, alpha {alpha}"] = accuracy(between, few.test)
        scores[f"shifted, alpha {alpha}"] = statistics.mean(accuracy(between, part) for part in shifted)
    scores["best alpha when shifted (number)"] = max(ALPHAS, key=lambda a: scores[f"shifted, alpha {a}"])
    return scores


def l2sp(data, seed: int, options) -> dict[str, float]:
    few = task(data["target"], range(10), 20, seed)
    start = new(few, seed, options)
    plain = fitted(copy.deepcopy(start), few, 2, 2e-3, seed)
    pulled = fitted(copy.deepcopy(start), few, 2, 2e-3, seed, callbacks=[L2SP(0.0)])
    pairs = zip(plain.state_dict().values(), pulled.state_dict().values(), strict=True)
    return {"largest difference (number)": max(float((a - b).abs().max()) for a, b in pairs)}


DIRECTIONS = {"lp_ft": lp_ft, "surgical": surgical, "wise_ft": wise_ft, "l2sp": l2sp}


def images(data_dir: str | None, seed: int) -> dict[str, Classification]:
    """Two halves of the training images, for source and target, each beside the same 1,000 test images."""
    whole = mnist(data_dir) if data_dir else digits()
    test = torch.arange(min(1000, len(whole.test)))
    n = min(8000, len(whole.train)) // 2
    halves = stratified_shares(whole.train.targets, [n, n], seed, "halves")
    small = {}
    for name, part in (("train", whole.train), ("test", whole.test.view(test))):
        x, y = part.batch(torch.cat(halves) if name == "train" else test)
        size = [14, 14] if x.shape[-1] >= 14 else [12, 12]
        x = nn.functional.interpolate(x, size, mode="bilinear", antialias=True).clamp(0, 1)
        small[name] = TensorData(x, y, first_id=0 if name == "train" else len(whole.train))
    return {
        name: Classification(small["train"].view(torch.arange(n) + i * n), small["test"])
        for i, name in enumerate(("source", "target"))
    }


def task(data, classes, per_class: int, seed: int, transform=None, reverse: bool = False):
    """One task: some training images of each class, as many again for validation, all test images."""
    at_most = int(data.train.targets.bincount().min())
    few = subset(data, list(classes), min(2 * per_class, at_most), seed)
    if reverse:
        last = len(few.class_names) - 1
        few = Classification(
            *(part.view(torch.arange(len(part)), last - part.targets) for part in (few.train, few.test)),
            few.class_names,
        )
    transforms = None if transform is None else [transform]
    return data_incremental(few, 1, transform=transforms, validation_fraction=0.5, seed=seed)[0]


def new(of, seed: int, options) -> FineTuningModule:
    """The network with random weights, for the classes of a task."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FineTuningModule(Blocks(options.norm), input_shape=(1, 14, 14), class_names=of.classes, seed=seed)


def fitted(module, of, epochs: int, lr: float, seed: int, thaw: str = "all", callbacks=()) -> FineTuningModule:
    """The module after training what ``thaw`` names."""
    module.optimizer_factory = partial(torch.optim.Adam, lr=lr)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    schedule = FreezingSchedule(phases=[{"thaw": thaw}], table=False)
    trainer = Trainer(
        max_epochs=max(1, epochs), accelerator="cpu", limit_val_batches=0, callbacks=[schedule, *callbacks], **quiet
    )
    trainer.fit(module, datamodule=TaskDataModule(of, batch_size=32, seed=seed))
    return module


def best_of(start, of, epochs: int, seed: int, thaw: str, rates=RATES) -> FineTuningModule:
    """From the same start with several learning rates: what is best on the validation images."""
    tuned = [fitted(copy.deepcopy(start), of, epochs, lr, seed, thaw) for lr in rates]
    return max(tuned, key=lambda module: accuracy(module, of.validation))


@torch.no_grad()
def accuracy(module, data) -> float:
    x, y = data.batch(torch.arange(len(data)))[:2]
    return 100 * float((module.eval()(x).argmax(1) == y).float().mean())


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data-dir", help="folder of MNIST, as torchvision lays it out; digits if left out")
    options.add_argument("--directions", nargs="+", choices=list(DIRECTIONS), default=list(DIRECTIONS))
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--norm", choices=["group", "batch"], default="group")
    options.add_argument("--labels", type=int, default=5, help="of each class, in surgical")
    options.add_argument("--effort", type=float, default=1.0, help="multiplies the epochs")
    options.add_argument("--out", help="a JSON file for all figures")
    return options


if __name__ == "__main__":
    main()
