"""Texts that have been made into tokens."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.padding import pad_rows
from lightning_cl.streams.data import TaskTransform


class Tokens:
    """Texts of unequal length, one behind the other.

    Args:
        texts: Token ids of each text.
        padding: Token that fills batches up.
        max_length: Tokens that a text may have.
    """

    def __init__(self, texts: Sequence[Sequence[int]], *, padding: int = 0, max_length: int | None = None) -> None:
        self.lengths = torch.tensor([len(ids) for ids in texts], dtype=torch.long)
        self.ids = torch.tensor([token for ids in texts for token in ids], dtype=torch.int32)
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.padding = padding
        self.max_length = max_length or (int(self.lengths.max()) if len(texts) else 0)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    def padded(self, rows: Tensor) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (N, L) of these texts, L the longest one's tokens."""
        ids, mask = pad_rows(self.ids, self.starts[rows], self.lengths[rows], self.padding)
        return {"input_ids": ids.long(), "attention_mask": mask.long()}


class TextData:
    """Texts and their labels, served as padded mappings: ``input_ids``, ``attention_mask``, ``labels``, ``task``.

    Tokens are made once, before; a batch is as wide as its longest text. ``Tokens`` can be shared between any number of
    tasks: ``rows`` says which of its texts belong to this one.

    Args:
        tokens: Token ids of M texts.
        y: Labels (N,) long, one for each of ``rows``.
        task_id: If given, batches hold ``task`` (task_incremental). A tensor (N,) gives each text its own.
        rows: Texts that are served (N,) long; by default all.
        task_transform, augment, normalize: None; texts are served as they are.
        seed: Without effect; nothing is random.

    Raises:
        InputError: If numbers of texts and labels differ, or a transform is given.

    Example:
        >>> data = TextData(Tokens([[5, 6], [7], [8, 9]]), torch.tensor([0, 1, 0]))
        >>> {name: leaf.tolist() for name, leaf in data.batch(torch.tensor([1, 2])).items()}
        {'input_ids': [[7, 0], [8, 9]], 'attention_mask': [[1, 0], [1, 1]], 'labels': [1, 0]}
    """

    cheap = True

    def __init__(
        self,
        tokens: Tokens,
        y: Tensor,
        *,
        task_id: int | Tensor | None = None,
        rows: Tensor | None = None,
        task_transform: TaskTransform | None = None,
        augment: Callable[..., Any] | None = None,
        normalize: tuple[Any, Any] | None = None,
        seed: int = 0,
    ) -> None:
        for name, given in (("transform", task_transform), ("augment", augment), ("normalize", normalize)):
            if given is not None:
                raise InputError(f"{name}={given!r} of texts", "none: tokens are no numbers", f"set stream.{name}=null")
        self.rows = torch.arange(len(tokens)) if rows is None else rows
        if len(self.rows) != len(y):
            raise InputError(
                f"{len(self.rows)} texts and {len(y)} labels", "one label per text", "check the data set's labels"
            )
        self.tokens, self.targets = tokens, y.long()
        self.task_ids = None if task_id is None else torch.as_tensor(task_id, dtype=torch.long).expand(len(y))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(Tokens that a text may have,)."""
        return (self.tokens.max_length,)

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> dict[str, Tensor]:
        """The texts at ``indices``; see ``Data.batch``."""
        batch = self.tokens.padded(self.rows[indices]) | {"labels": self.targets[indices]}
        return batch if self.task_ids is None else batch | {"task": self.task_ids[indices]}

    def sample_ids(self, indices: Tensor) -> Tensor:
        """What names the texts at ``indices``, (N,) long: their positions among the texts."""
        return self.rows[indices]

    def view(self, indices: Tensor, targets: Tensor | None = None, **changes: Any) -> "TextData":
        """Some of the texts as new data on the same tokens, with other labels or constructor arguments."""
        task_id = None if self.task_ids is None else self.task_ids[indices]
        y = self.targets[indices] if targets is None else targets
        return TextData(self.tokens, y, rows=self.rows[indices], **{"task_id": task_id, **changes})

    def padded(self, pad: int) -> "TextData":
        """Nothing of the kind: texts have no edges.

        Raises:
            InputError: Always.
        """
        raise InputError(f"pad={pad!r} of texts", "none: batches are padded by themselves", "set stream.pad=null")

    def digest(self) -> bytes:
        """A hash of the tokens, for the fingerprint of a task."""
        lengths = self.tokens.lengths[self.rows]
        ends = lengths.cumsum(0)
        shifts = (self.tokens.starts[self.rows] - ends + lengths).repeat_interleave(lengths)
        flat = self.tokens.ids[torch.arange(len(shifts)) + shifts]
        return hashlib.blake2b(lengths.numpy().tobytes() + flat.numpy().tobytes(), digest_size=16).digest()
