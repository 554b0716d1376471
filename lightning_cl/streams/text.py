"""Data sets of texts: from files, or from lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.source import Classification, Domains
from lightning_cl.streams.splitting import hold_out
from lightning_cl.streams.text_data import TextData
from lightning_cl.streams.text_files import Column, Reading, Texts, read_texts
from lightning_cl.streams.tokenizer import TextTokenizer, word_pieces


def text_files(
    path: str | Path | None,
    test_path: str | Path | None = None,
    *,
    text_column: Column = "text",
    label_column: Column = "label",
    domain_column: Column | None = None,
    delimiter: str | None = None,
    quotes: bool | None = None,
    encoding: str = "utf-8",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    tokenizer: Any = None,
    vocab_size: int = 8000,
    max_length: int = 128,
) -> Classification:
    """Texts with a label each, from a file (CSV, TSV, JSON lines, parquet) or a folder with .txt files per class.

    Args:
        path: The file or folder.
        test_path: Another one of the same kind; if None, a part of ``path`` is the test data.
        text_column: Name of the texts' column; in a table without a line of names its position, 0, 1, ...
        label_column: Of the labels; their names in alphabetical order (numbers in theirs) are the classes.
        domain_column: Of what each text is about, or where it comes from: ``domain_incremental`` then has a task for
            each, in the order in which they come first.
        delimiter: Of a table's columns, one character or ``"tab"``; by default a tab in .tsv, .tab and .txt files, else
            a comma.
        quotes: Whether a column may stand in double quotes; by default not with tabs.
        encoding: Of the files.
        test_fraction: The part of ``path`` that is test data, stratified.
        split_seed: Seed of that split.
        tokenizer: The model's own: a folder, a name on the hub, or a Hugging Face tokenizer. ``"auto"`` or None: one
            made of the training texts, :func:`~lightning_cl.streams.tokenizer.word_pieces`, for models that have
            learnt nothing yet.
        vocab_size: Tokens of that one at most.
        max_length: Tokens of a text, special ones included; what is behind is cut off.

    Raises:
        InputError: For files, columns and rows that are not there, a test class that training data lack, and a
            tokenizer that cannot be had.
    """
    reading = Reading(text_column, label_column, domain_column, delimiter, quotes, encoding)
    train = read_texts(path, "path", reading)
    test = None if test_path is None else read_texts(test_path, "test_path", reading)
    return _classification(train, test, test_fraction, split_seed, tokenizer, vocab_size, max_length)


def text_lists(
    texts: Sequence[str],
    labels: Sequence[Any],
    test_texts: Sequence[str] | None = None,
    test_labels: Sequence[Any] | None = None,
    *,
    domains: Sequence[Any] | None = None,
    test_domains: Sequence[Any] | None = None,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    tokenizer: Any = None,
    vocab_size: int = 8000,
    max_length: int = 128,
) -> Classification:
    """Texts with a label each, from lists; see :func:`text_files` for everything else.

    Args:
        texts: The texts.
        labels: The class of each: names or numbers.
        test_texts: Test texts; if None, a part of ``texts``.
        test_labels: Their classes.
        domains: Domain of each text.
        test_domains: Domain of each test text.
        test_fraction, split_seed, tokenizer, vocab_size, max_length: See :func:`text_files`.

    Raises:
        InputError: If numbers of texts, labels and domains differ, or a text is no string; and as :func:`text_files`.

    Example:
        >>> source = text_lists(["good", "bad", "so good", "so bad"], ["+", "-", "+", "-"], test_fraction=0.5)
        >>> source.class_names, len(source.train), sorted(source.train.batch(torch.arange(1)))
        (['+', '-'], 2, ['attention_mask', 'input_ids', 'labels'])
    """
    train = _given("texts", texts, labels, domains)
    test = None if test_texts is None else _given("test_texts", test_texts, test_labels, test_domains)
    return _classification(train, test, test_fraction, split_seed, tokenizer, vocab_size, max_length)


def _given(name: str, texts: Sequence[str], labels: Sequence[Any] | None, domains: Sequence[Any] | None) -> Texts:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{name} that are not all strings", "a list of strings", "leave out what is None or NaN")
    listed = [[str(v.item() if hasattr(v, "item") else v) for v in values or []] for values in (labels, domains)]
    for what, values in (("labels", labels), ("domains", domains)):
        if (values is not None or what == "labels") and len(values or []) != len(texts):
            raise InputError(f"{len(texts)} {name} and {len(values or [])} {what}", "as many", "give one for each text")
    if not texts:
        raise InputError(f"{name}=[]", "at least one text", "check what was read")
    return Texts(list(texts), listed[0], None if domains is None else listed[1])


def _classification(
    train: Texts, test: Texts | None, fraction: float, seed: int, tokenizer: Any, vocab_size: int, max_length: int
) -> Classification:
    names = sorted(set(train.labels), key=_order)
    labels = _numbers(train.labels, names, "label")
    domain_names = list(dict.fromkeys(train.domains or []))
    domains = _numbers(train.domains or [], domain_names, "domain")
    n = len(train.texts)
    if test is None:
        if not 0 < fraction < 1:
            raise InputError(
                f"test_fraction={fraction!r}", "a fraction inside (0, 1)", "set test_fraction=0.2, or a test_path"
            )
        # every domain has its share of test data
        strata = labels if not len(domains) else labels * len(domain_names) + domains
        kept, held = hold_out(strata, fraction, seed, "text", "test")
        texts = train.texts
    else:
        labels = torch.cat([labels, _numbers(test.labels, names, "label")])
        domains = torch.cat([domains, _numbers(test.domains or [], domain_names, "domain")])
        kept, held = torch.arange(n), torch.arange(n, len(labels))
        texts = [*train.texts, *test.texts]
    if tokenizer in (None, "auto"):
        tokenizer = word_pieces([texts[row] for row in kept.tolist()], vocab_size)
    made = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(tokenizer, max_length)
    every = TextData(made.encode(texts), labels)
    of = Domains(domain_names, domains[kept], domains[held]) if domain_names else None
    return Classification(every.view(kept), every.view(held), names, domains=of, tokenizer=made)


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers by their value, before names."""
    try:
        return False, float(name), name
    except ValueError:
        return True, 0.0, name


def _numbers(values: Sequence[str], names: Sequence[str], what: str) -> Tensor:
    places = {name: place for place, name in enumerate(names)}
    unknown = sorted(set(values) - places.keys())
    if unknown:
        raise InputError(
            f"test {what} {unknown[0]!r}, which no training text has",
            f"one of {', '.join(names[:10])}",
            f"leave such texts out, or name the {what} alike in both files",
        )
    return torch.tensor([places[value] for value in values], dtype=torch.long)
