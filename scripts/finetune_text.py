"""How well does a pretrained text encoder learn a file of labelled texts, beside a linear model of words?

    python scripts/finetune_text.py --weights FOLDER --data spam.tsv --text 1 --label 0 --positive spam --seeds 3

Prints macro F1 and F1 of one class on a fifth of the texts, held out stratified by each seed, for: TF-IDF of words and
pairs of words with logistic regression (scikit-learn); the network with random weights; and with the pretrained ones.
Each network is trained as a whole, with AdamW, for the same number of epochs; ``random-probe`` and ``pretrained-probe``
are logistic regression on the features of the frozen network. With few labels the head comes first (LP-FT), and the
learning rate is chosen on a fifth of the training texts, C by cross-validation, for each network by itself:

    python scripts/finetune_text.py ... --train 100 --epochs 10 --lr 5e-5 2e-4 --head-first 0.3 \\
        --models tf-idf random-probe pretrained-probe random pretrained
"""

import argparse
import logging
import statistics
import time
import warnings
from functools import partial

import torch
from lightning.pytorch import Trainer, seed_everything
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lightning_cl import FineTuningModule, FreezingSchedule
from lightning_cl.finetuning import HFTextBackbone
from lightning_cl.streams import Classification, TaskDataModule, data_incremental, text_lists
from lightning_cl.streams.splitting import hold_out, stratified_shares
from lightning_cl.streams.text_files import Reading, read_texts


def main() -> None:
    arguments = parser().parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    found = read_texts(arguments.data, "data", Reading(arguments.text, arguments.label, delimiter=arguments.delimiter))
    positive = arguments.positive or min(set(found.labels), key=found.labels.count)
    print(f"{len(found.texts)} texts, {found.labels.count(positive)} of class {positive!r}")
    scores: dict[str, list[tuple[float, float]]] = {}
    for seed in range(arguments.seeds):
        source = text_lists(
            found.texts,
            found.labels,
            split_seed=seed,
            tokenizer=arguments.weights,
            max_length=arguments.max_length,
        )
        if arguments.train:
            (rows,) = stratified_shares(source.train.targets, [arguments.train], seed, "train")
            source.train = source.train.view(rows)
        truth = [source.class_names[i] for i in source.test.targets.tolist()]
        for name in arguments.models:
            start = time.perf_counter()
            if name == "tf-idf":
                guessed = tf_idf(found, source)
            else:
                way = probe if name.endswith("probe") else network
                guessed = way(source, name.startswith("pretrained"), seed, arguments)
            both = (
                float(f1_score(truth, guessed, average="macro")),
                float(f1_score(truth, guessed, labels=[positive], average="macro")),
            )
            scores.setdefault(name, []).append(both)
            seconds = time.perf_counter() - start
            print(
                f"seed {seed}  {name:<16}  macro F1 {both[0]:.4f}  {positive} F1 {both[1]:.4f}  {seconds:.0f} s",
                flush=True,
            )
    print(f"\nmean and standard deviation over {arguments.seeds} seeds")
    for name, values in scores.items():
        cells = [
            f"{statistics.mean(v):.4f} +- {statistics.stdev(v) if len(v) > 1 else 0:.4f}"
            for v in zip(*values, strict=False)
        ]
        print(f"{name:<16}  macro F1 {cells[0]}  {positive} F1 {cells[1]}")


def tf_idf(found, source) -> list[str]:
    """Predictions of logistic regression on the words and pairs of words of the same training texts."""
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=100, max_iter=1000)
    )
    train, test = source.train.rows.tolist(), source.test.rows.tolist()
    model.fit([found.texts[i] for i in train], [found.labels[i] for i in train])
    return list(model.predict([found.texts[i] for i in test]))


def probe(source, pretrained: bool, seed: int, arguments) -> list[str]:
    """Predictions of logistic regression on the features of the frozen network."""
    seed_everything(seed, verbose=False)
    backbone = HFTextBackbone((arguments.max_length,), arguments.weights, weights=pretrained).eval()
    (x, y), (x_test, _) = (features(backbone, part) for part in (source.train, source.test))
    grid = [10.0**k for k in range(-4, 3)]
    # of few texts the loss tells more than F1 does, which ties
    regression = LogisticRegressionCV(Cs=grid, cv=5, scoring="neg_log_loss", max_iter=2000)
    model = make_pipeline(StandardScaler(), regression).fit(x, y)
    return [source.class_names[i] for i in model.predict(x_test)]


@torch.no_grad()
def features(backbone, data):
    """Features (N, d) and labels (N,) of all texts, in arrays."""
    batches = [data.batch(rows) for rows in torch.arange(len(data)).split(64)]
    inputs = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    return torch.cat([backbone(batch) for batch in inputs]).numpy(), data.targets.numpy()


def network(source, pretrained: bool, seed: int, arguments) -> list[str]:
    """Predictions of the network after fine-tuning it on all training texts."""
    lr = arguments.lr[0]
    if len(arguments.lr) > 1:
        kept, held = hold_out(source.train.targets, 0.2, seed, "validation")
        inner = Classification(source.train.view(kept), source.train.view(held), source.class_names)
        truth = [source.class_names[i] for i in inner.test.targets.tolist()]

        def score(lr: float) -> float:
            return float(f1_score(truth, predictions(inner, pretrained, seed, lr, arguments), average="macro"))

        lr = max(arguments.lr, key=score)
    return predictions(source, pretrained, seed, lr, arguments)


def predictions(source, pretrained: bool, seed: int, lr: float, arguments) -> list[str]:
    """Predictions for the test texts after training with one learning rate."""
    seed_everything(seed, verbose=False)
    module = FineTuningModule(
        HFTextBackbone((arguments.max_length,), arguments.weights, weights=pretrained),
        optimizer=partial(torch.optim.AdamW, lr=lr),
        parameter_groups={"multipliers": {"head": arguments.head_rate}},
        scheduler=partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.1, total_iters=20),
        scheduler_interval="step",
    )
    data = TaskDataModule(data_incremental(source, 1)[0], batch_size=32, eval_batch_size=64, seed=seed)
    first = {"recipe": "lp_ft", "recipe_options": {"fraction": arguments.head_first}}
    trainer = Trainer(
        callbacks=[FreezingSchedule(**first, table=False)] if arguments.head_first else [],
        max_epochs=arguments.epochs,
        accelerator=arguments.accelerator,
        devices=1,
        precision=arguments.precision,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    batches = trainer.predict(module, dataloaders=data.test_dataloader())
    return [name for batch in batches or [] for name in batch]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--weights", required=True, help="a folder of config.json, weights and tokenizer, or a hub name"
    )
    options.add_argument("--data", required=True, help="a file of texts and labels, or a folder per class")
    options.add_argument("--text", type=column, default="text", help="name or position of the texts' column")
    options.add_argument("--label", type=column, default="label", help="of the labels' column")
    options.add_argument("--delimiter", help="of columns, one character or tab")
    options.add_argument("--positive", help="the class whose F1 is printed; by default the rarest")
    options.add_argument("--models", nargs="+", default=["tf-idf", "random", "pretrained"])
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--train", type=int, help="texts that are trained on, stratified; all by default")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--lr", type=float, nargs="+", default=[1e-4], help="of several the best on validation texts")
    options.add_argument("--head-first", type=float, default=0.0, help="fraction of the training with the head alone")
    options.add_argument(
        "--head-rate", type=float, default=1.0, help="the head's learning rate, in those of the others"
    )
    options.add_argument("--max-length", type=int, default=64)
    options.add_argument("--accelerator", default="auto")
    options.add_argument("--precision", default="32-true", help="bf16-mixed is faster where it is supported")
    return options


def column(text: str) -> str | int:
    return int(text) if text.isdigit() else text


if __name__ == "__main__":
    main()
