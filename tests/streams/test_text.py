"""Texts as streams: read, made into tokens once, padded batch by batch."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import (
    ConcatData,
    TaskDataModule,
    TaskLoader,
    TextData,
    TextTokenizer,
    build_stream,
    merge_tasks,
    text_files,
    text_lists,
)
from lightning_cl.streams.stored_data import stored_data
from lightning_cl.streams.text_data import Tokens
from lightning_cl.streams.tokenizer import word_pieces
from tests.text_examples import rows, source, stream


def decoded(data: Any, tokenizer: TextTokenizer) -> list[str]:
    ids = data.batch(torch.arange(len(data)))["input_ids"]
    return [" ".join(t for t in tokenizer.tokenizer.convert_ids_to_tokens(i.tolist()) if t[0] != "[") for i in ids]


# files ----------------------------------------------------------------------------------------------------------------


def write(folder: Path, kind: str, records: list[tuple[str, str]]) -> Path:
    path = folder / f"texts.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": t, "label": y, "n": 1}) for t, y in records))
    else:
        with path.open("w", newline="") as file:
            lines = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            lines.writerows([("n", "text", "label"), *((1, t, y) for t, y in records)])
    return path


def write_folder(folder: Path, records: list[tuple[str, str]]) -> Path:
    for number, (text, label) in enumerate(records):
        (folder / "texts" / label).mkdir(parents=True, exist_ok=True)
        (folder / "texts" / label / f"{number:03}.txt").write_text(text)
    return folder / "texts"


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "folder"])
def test_every_format_gives_the_same_texts(kind: str, tmp_path: Path):
    records = sorted(rows(40), key=lambda record: record[1])  # as a folder has them
    path = write_folder(tmp_path, records) if kind == "folder" else write(tmp_path, kind, records)
    read = text_files(path, vocab_size=150)
    given = text_lists(*zip(*records, strict=True), vocab_size=150)
    assert read.class_names == given.class_names == ["bird", "fruit", "metal", "river"]
    for one, two in ((read.train, given.train), (read.test, given.test)):
        assert torch.equal(one.targets, two.targets)
        assert decoded(one, read.tokenizer) == decoded(two, given.tokenizer)
    texts = dict(records)
    for text, label in zip(decoded(read.train, read.tokenizer), read.train.targets.tolist(), strict=True):
        assert texts[text] == read.class_names[label]


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts, labels = zip(*rows(20), strict=True)
    parquet.write_table(pyarrow.table({"text": texts, "label": labels}), tmp_path / "t.parquet")
    assert len(text_files(tmp_path / "t.parquet").train) == 16


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"without the package pyarrow.*HINT: pip install pyarrow"):
        text_files(tmp_path / "t.parquet")


def test_a_table_without_a_line_of_names_and_with_quotes_in_its_texts(tmp_path: Path):
    (tmp_path / "t.csv").write_text('ham\tsay "yes\nspam\t"win" now\nham\tok\nspam\tfree\n')
    data = text_files(tmp_path / "t.csv", text_column=1, label_column=0, delimiter="tab", test_fraction=0.5)
    texts = decoded(data.train, data.tokenizer) + decoded(data.test, data.tokenizer)
    assert len(texts) == 4
    assert data.class_names == ["ham", "spam"]


def test_a_test_file_and_numbers_as_labels(tmp_path: Path):
    train = write(tmp_path, "csv", [("a b", "10"), ("c d", "9"), ("e f", "2")])
    test = write(tmp_path, "tsv", [("a z", "9")])
    data = text_files(train, test)
    assert data.class_names == ["2", "9", "10"]
    assert (len(data.train), data.test.targets.tolist()) == (3, [1])
    assert "z" not in data.tokenizer.tokenizer.get_vocab()  # a tokenizer is made of training texts alone
    with pytest.raises(InputError, match="test label '7', which no training text has; expected one of 2, 9, 10"):
        text_files(train, write(tmp_path, "tsv", [("a z", "7")]))


BAD = [
    ("", {}, "without rows"),
    ("text,label\na\n", {}, "row 1 of .* with 1 columns; expected 2"),
    ("text,label\na,\n", {}, "row 1 of .* without 'label'"),
    ("text,label\na,b\n", {"text_column": "sms"}, "text_column='sms' .*expected one of text, label. HINT: set stream"),
    ("a,b\n", {"text_column": 2, "label_column": 0}, "row 1 .* with 2 columns, without column 2"),
    ("a,b\n", {"text_column": 0}, r"columns \[0, 'label'\]; expected names of all, or positions of all"),
    ("text,label\na,b\n", {"delimiter": ", "}, "delimiter=', '; expected one character, or 'tab'"),
    ("text,label\na,b\n", {"test_fraction": 1.0}, "test_fraction=1.0"),
    ("text,label\na,b\n", {"max_length": 2}, "max_length=2"),
    ("text,label\na,b\n", {"vocab_size": 5}, "vocab_size=5 for 1 characters; expected at least 6"),
    ("text,label\na,b\n", {"tokenizer": "/no/such/folder"}, "tokenizer '/no/such/folder'; expected an existing folder"),
]


@pytest.mark.parametrize(("content", "options", "said"), BAD)
def test_bad_tables(content: str, options: dict[str, Any], said: str, tmp_path: Path):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        text_files(tmp_path / "t.csv", **options)


def test_bad_files(tmp_path: Path):
    for path in (None, tmp_path / "none.csv"):
        with pytest.raises(InputError, match=r"which is not there.*HINT: set stream.dataset.path=FILE"):
            text_files(path)
    for name, content, said in [
        ("t.xls", b"", "expected a file of .csv"),
        ("t.jsonl", b"[1]\n", "line 1 of .*expected a JSON object in each line"),
        ("t.jsonl", b'{"text": null, "label": 1}\n', "row 1 of .* without 'text'"),
        ("t.csv", b"text,label\n\xe9,b\n", "expected text in utf-8. HINT: set stream.dataset.encoding=latin-1"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=said):
            text_files(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"expected a folder with a sub-folder of .txt files per class"):
        text_files(tmp_path / "empty")


def test_bad_lists():
    with pytest.raises(InputError, match="2 texts and 1 labels; expected as many"):
        text_lists(["a", "b"], [0])
    with pytest.raises(InputError, match="texts that are not all strings"):
        text_lists(["a", None], [0, 1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="2 texts and 1 domains"):
        text_lists(["a", "b"], [0, 1], domains=["x"])
    with pytest.raises(InputError, match=r"texts=\[\]"):
        text_lists([], [])


# tokens ---------------------------------------------------------------------------------------------------------------


def test_a_batch_is_as_wide_as_its_longest_text():
    data = TextData(Tokens([[1, 2, 3], [4], [5, 6]], padding=9), torch.tensor([0, 1, 0]), task_id=3)
    batch = data.batch(torch.tensor([1, 2]))
    assert batch["input_ids"].tolist() == [[4, 9], [5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert (batch["labels"].tolist(), batch["task"].tolist()) == ([1, 0], [3, 3])
    assert data.batch(torch.tensor([0]))["input_ids"].shape == (1, 3)
    view = data.view(torch.tensor([2, 1]), torch.tensor([7, 8]))
    assert view.batch(torch.arange(2))["labels"].tolist() == [7, 8]
    assert view.batch(torch.arange(2))["task"].tolist() == [3, 3]
    with pytest.raises(InputError, match="3 texts and 1 labels"):
        TextData(data.tokens, torch.tensor([0]))


def test_texts_are_cut_and_never_empty():
    made = TextTokenizer(word_pieces(["a b c d e f"]), max_length=4)
    tokens = made.encode(["a b c d e f", "", "a"])
    assert tokens.lengths.tolist() == [4, 2, 3]
    assert made(["a"])["input_ids"].shape == (1, 3)
    bare = made.tokenizer.__class__(tokenizer_object=made.tokenizer.backend_tokenizer, pad_token="[PAD]")
    bare.backend_tokenizer.post_processor = None
    assert TextTokenizer(bare, 4).encode([""]).lengths.tolist() == [1]


def test_words_that_are_not_known_are_spelt():
    made = word_pieces(["The OWL the owl the tin", "lint"], vocab_size=22)
    assert made.tokenize("owl The lint") == ["owl", "the", "l", "##i", "##n", "##t"]
    assert made.tokenize("now?") == ["n", "##o", "##w", "[UNK]"]


def test_a_tokenizer_is_saved_and_the_same_in_any_process(tmp_path: Path):
    texts = [text for text, _ in rows()]
    made = TextTokenizer(word_pieces(texts, 120), 12)
    made.save(tmp_path)
    again = TextTokenizer(tmp_path)
    assert again.max_length == 12
    assert torch.equal(again(texts)["input_ids"], made(texts)["input_ids"])
    code = (
        "import json, sys; from lightning_cl.streams.tokenizer import word_pieces; "
        "print(json.dumps(word_pieces(json.loads(sys.argv[1]), 120).get_vocab()))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(texts)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == made.tokenizer.get_vocab()


# streams --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scenario", ["class_incremental", "task_incremental", "domain_incremental", "data_incremental"]
)
def test_scenarios(scenario: str):
    tasks = stream(scenario)
    assert len(tasks) == 2
    assert tasks.input_shape == (16,)
    batch = tasks[1].train.batch(torch.arange(len(tasks[1].train)))
    assert ("task" in batch) == (scenario == "task_incremental")
    assert set(batch["labels"].tolist()) == set(tasks[1].class_indices)
    again = stream(scenario)
    assert [tasks.fingerprint(t) for t in (0, 1)] == [again.fingerprint(t) for t in (0, 1)]
    assert tasks.tokenizer.vocab_size <= 150


def test_a_fingerprint_notices_other_tokens():
    assert stream().fingerprint(0) != stream(data=source(max_length=5)).fingerprint(0)


def test_domains_are_tasks():
    texts, labels = zip(*rows(80), strict=True)
    domains = [["news", "mail"][i // 4 % 2] for i in range(80)]
    tasks = build_stream(text_lists(texts, labels, domains=domains), "domain_incremental")
    assert [task.name for task in tasks] == ["news", "mail"]
    assert [len(task.train) + len(task.test) for task in tasks] == [40, 40]
    assert all(len(task.classes) == 4 for task in tasks)
    spoken = dict(zip(texts, domains, strict=True))
    assert {spoken[text] for text in decoded(tasks[1].train, tasks.tokenizer)} == {"mail"}
    with pytest.raises(InputError, match="n_tasks=3 with 2 domains; expected a task for each"):
        build_stream(text_lists(texts, labels, domains=domains), "domain_incremental", n_tasks=3)


def test_what_is_for_images_is_refused():
    for options in ({"normalize": (0.5, 0.5)}, {"augment": lambda x: x}, {"pad": 2}):
        with pytest.raises(InputError, match="of texts"):
            stream(**options)


def same(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_loaders_go_on_and_do_not_depend_on_workers():
    task = stream()[0]
    module = TaskDataModule(task, batch_size=7, updates_per_batch=2)
    whole = list(module.train_dataloader())
    assert same(whole[0], whole[1])
    assert whole[0]["labels"].data_ptr() != whole[1]["labels"].data_ptr()
    loader = module.train_dataloader()
    loader.load_state_dict({"version": 1, "epoch": 0, "batches": 3})
    assert all(same(a, b) for a, b in zip(list(loader), whole[3:], strict=True))
    assert len({tuple(batch["input_ids"].shape) for batch in whole}) > 1  # padded batch by batch
    dear = SelectedDear(task.train)
    with_workers = list(TaskLoader(dear, 7, shuffle=True, num_workers=1))
    assert all(same(a, b) for a, b in zip(with_workers, whole[::2], strict=True))


class SelectedDear:
    cheap = False

    def __init__(self, data: Any) -> None:
        self.data, self.targets = data, data.targets

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, *args: Any, **options: Any) -> Any:
        return self.data.batch(*args, **options)


def test_merged_and_stored_texts():
    tasks = stream()
    merged = merge_tasks(list(tasks), id=1, name="both").train
    assert isinstance(merged, ConcatData)
    n = len(tasks[0].train)
    batch = merged.batch(torch.tensor([n + 1, 0, n]))
    own = tasks[1].train.batch(torch.tensor([1, 0]))
    width = own["input_ids"].shape[1]
    assert torch.equal(batch["input_ids"][[0, 2], :width], own["input_ids"])
    assert batch["labels"].tolist() == [own["labels"][0], tasks[0].train.targets[0], own["labels"][1]]
    kept = stored_data(batch)
    assert same(kept.batch(torch.tensor([2, 0])), {key: value[[2, 0]] for key, value in batch.items()})
    assert kept.targets.tolist() == batch["labels"].tolist()
    with pytest.raises(InputError, match=r"leaves \['text'\]"):
        stored_data({"text": ["a"]})
