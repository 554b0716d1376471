"""What a classifier takes from saved weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._find_head import rows_of
from lightning_cl.finetuning._head_rows import copy_rows, names_of, row_keys, row_pairs
from lightning_cl.finetuning.cosine_head import CosineHead
from lightning_cl.finetuning.mlp_head import MLPHead
from lightning_cl.finetuning.new_head import replace_head
from lightning_cl.finetuning.weights_report import WeightsReport

KEEP = {"keep_matching": "matching", "as_saved": "matching", "keep_first": "first", "error": "none", "new": "none"}


class SavedHead:
    """A classifier's tensors in saved weights, and the names of its rows on both sides.

    Args:
        model: The model.
        where: Name of its classifier.
        saved: All saved tensors, under the model's names.
        names: Class names of (the model, the file) where they were given; else None.
        file_classes: Class names that the file itself has.

    Raises:
        InputError: If names were given, but not one for each row.
    """

    def __init__(
        self,
        model: nn.Module,
        where: str,
        saved: Mapping[str, Tensor],
        names: tuple[Sequence[str] | None, Sequence[str] | None],
        file_classes: Sequence[str],
    ) -> None:
        self.where, self.layer = where, model.get_submodule(where)
        self.own = self.layer.state_dict()
        self.saved = {key: saved[f"{where}.{key}"] for key in self.own if f"{where}.{key}" in saved}
        weight = self.saved.get(row_keys(self.layer)[0])
        self.rows = rows_of(self.layer), 0 if weight is None else len(weight)
        self.names = (
            self._checked(names[0], names_of(model, self.layer), self.rows[0], "classes"),
            self._checked(names[1], file_classes, self.rows[1], "saved_classes"),
        )

    def _checked(self, given: Sequence[str] | None, found: Sequence[str], rows: int, argument: str) -> list[str]:
        if given is not None and len(given) != rows and rows:
            raise InputError(f"{len(given)} {argument}", f"{rows}, one for each row of {self.where}", "name every row")
        names = found if given is None else given
        return [str(name) for name in names] if len(names) == rows else []

    @property
    def same(self) -> bool:
        """Whether it can be loaded as it is."""
        shapes = {key: value.shape for key, value in self.saved.items()}
        known = all(self.names)
        return shapes == {k: v.shape for k, v in self.own.items()} and (not known or self.names[0] == self.names[1])

    def load(self, choice: str, report: WeightsReport) -> None:
        """Fill the layer as the choice says, and report it."""
        keys = [f"{self.where}.{key}" for key in self.own]
        if self.same and choice != "new":
            for key, value in self.own.items():
                value.copy_(self.saved[key])
            report.loaded += keys
            return
        pairs = row_pairs(self.names[0], self.names[1], self.rows, KEEP[choice])
        kept = copy_rows(self.layer, self.saved, pairs)
        (report.resized if kept else report.kept).extend(keys)
        report.heads[self.where] = self._told(choice, kept)

    def refuse_other(self) -> None:
        """Refuse a classifier that cannot be loaded as it is."""
        if not self.same:
            raise InputError(
                f"{self.where} of {self._size(1)} in the file",
                f"{self._size(0)}, as the model has",
                "head='keep_matching', 'keep_first', 'new' or 'as_saved' says what to do with it",
            )

    def _size(self, side: int) -> str:
        names = f" {self.names[side]}" if self.names[side] and self.rows[side] <= 10 else ""
        return f"{self.rows[side]} rows{names}"

    def _told(self, choice: str, kept: int) -> str:
        if not self.saved:
            return "not in the file, stays as it is"
        if choice == "new":
            return "stays as it is"
        if kept:
            how = "number" if choice == "keep_first" else "class name"
            return f"{kept} of {self.rows[0]} rows from the file's {self.rows[1]}, by {how}"
        if not self.rows[0]:
            return f"has no rows yet, the file {self.rows[1]}; head='as_saved' takes its classes"
        if choice != "keep_first" and not all(self.names):
            side = "the file's rows (saved_classes=[...])" if self.names[0] else "the model's rows (classes=[...])"
            return (
                f"stays as it is: {self.rows[1]} rows in the file, {self.rows[0]} in the model, and no class names of "
                f"{side}; head='keep_first' keeps rows by number"
            )
        return f"stays as it is: none of its {self.rows[0]} rows fits one of the file's {self.rows[1]}"


def take_classes(model: Any, where: str, saved: Mapping[str, Tensor], names: Sequence[str], name: str | None) -> None:
    """Give the model the classes of a file: their names, or as many rows as it has."""
    layer: Any = model.get_submodule(where)
    weight = saved.get(f"{where}.{row_keys(layer)[0]}")
    if weight is None:
        return
    if hasattr(model, "learn_classes"):
        model.learn_classes(names or [str(i) for i in range(len(weight))])
        return
    options: dict[str, Any] = {}
    if isinstance(layer, MLPHead):
        options = {"head": "mlp", "hidden": layer.hidden.out_features, "dropout": layer.dropout.p}
    elif isinstance(layer, CosineHead):
        options = {"head": "cosine", "proxies": layer.proxies}
    replace_head(model, list(names) if len(names) == len(weight) else len(weight), name=name, **options)
