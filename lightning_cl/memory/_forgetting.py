"""Samples deleted from what a memory has saved, without the memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import select_leaf
from lightning_cl.memory._deleted import DeletedIds
from lightning_cl.memory._disk import DiskRows, shape_in
from lightning_cl.memory._held import IDS
from lightning_cl.memory._leaving import rows_named
from lightning_cl.memory._table import BORN, GONE, STAMP

# what is needed to take a sample out when the state is loaded: its name, and when it came
KEPT = (IDS, BORN)


def memory_states(value: Any) -> Iterator[dict[str, Any]]:
    """The states of memories anywhere within a state."""
    if isinstance(value, dict):
        if {"table", "deleted", "policy_state"} <= value.keys():
            yield value
        else:
            for item in value.values():
                yield from memory_states(item)


def check_named(state: dict[str, Any], where: Path) -> None:
    """See that the samples of a memory's state have ids.

    Raises:
        InputError: If there are samples, and they have none.
    """
    table = state["table"]
    if state["length"] and IDS not in table["columns"] and IDS not in table.get("files", {}):
        raise InputError(
            f"{str(where)!r} with samples that have no ids",
            "a run whose memory was filled with deletion_log=FILE, or with id_fn",
            "remove the run's checkpoints/*.learner.ckpt and fit-*.ckpt; its model.ckpt holds no samples",
        )


def is_on_disk(state: dict[str, Any]) -> bool:
    """Whether the samples of a memory's state are in files."""
    return "index" in state["table"] and state["table"]["index"]["numbers"][0] > 0


def forget_in_state(state: dict[str, Any], ids: Sequence[int | str], folder: Path | None) -> int:
    """Overwrite samples in the state of a memory, which takes them out when it loads it, and does not store them again.

    Args:
        state: What ``Memory.state_dict`` returned; it is changed.
        ids: Which.
        folder: Of a memory on disk, where :func:`forget_in_files` comes first.

    Returns:
        How many samples there were; 0 on disk.
    """
    columns = state["table"]["columns"]
    slots = rows_named(columns[IDS], ids) if IDS in columns else torch.empty(0, dtype=torch.long)
    deleted = DeletedIds(0, None)
    deleted.load_state_dict(state["deleted"])
    # an earlier call has left the names of what it has overwritten
    held = int((~deleted.among(select_leaf(columns[IDS], slots))).sum()) if len(slots) else 0
    deleted.add(ids)
    state["deleted"] = deleted.state_dict()
    if folder is not None:
        stamps = _columns(folder, state)[STAMP].data
        rows = state["table"]["index"]["rows"]
        _overwrite(columns, (stamps[rows] == GONE).nonzero().flatten())
        return 0
    _overwrite(columns, slots)
    return held


def forget_in_files(folder: Path, states: Sequence[dict[str, Any]], ids: Sequence[int | str]) -> int:
    """Overwrite samples in the files of a memory on disk, for all of its states.

    Args:
        folder: The memory's.
        states: Those that are kept, the newest last.
        ids: Which.

    Returns:
        How many samples the newest state holds.
    """
    held = 0
    for place in [folder, *folder.glob("rank*")]:
        columns = {name: column for state in states for name, column in _columns(place, state).items()}
        stamps = columns[STAMP].data
        rows = [rows_named(columns[IDS].data, ids)] if IDS in columns else []
        gone = torch.cat(rows + [_rows_of_strings(state, stamps, ids) for state in states]).unique()
        newest = states[-1]["table"]["index"]["rows"]
        held = max(held, int((torch.isin(newest, gone) & (stamps[newest] != GONE)).sum()))
        for name, column in columns.items():
            if name != BORN:
                column.wipe(gone)
        stamps[gone] = GONE
        for column in columns.values():
            column.flush()
    return held


def _overwrite(columns: dict[str, Any], slots: Tensor) -> None:
    for name, column in columns.items():
        if name in KEPT:
            continue
        if isinstance(column, Tensor):
            column.index_fill_(0, slots, 0)
        else:
            for slot in slots.tolist():
                column[slot] = None


def _columns(place: Path, state: dict[str, Any]) -> dict[str, DiskRows]:
    """The files as they are now, whatever shape of rows the state has known."""
    found = {}
    for name, (dtype, _) in state["table"]["files"].items():
        for file in place.glob(f"{quote(name, safe='')}-*.bin"):
            like = torch.empty((0, *shape_in(file)), dtype=getattr(torch, dtype))
            found[name] = DiskRows(name, like, place, name, existing=True)
            break
    return found


def _rows_of_strings(state: dict[str, Any], stamps: Tensor, ids: Sequence[int | str]) -> Tensor:
    """Rows of a state whose ids are strings, which are not in files; not of rows that were written again since."""
    index, names = state["table"]["index"], state["table"]["columns"].get(IDS)
    rows = index["rows"][rows_named(names, ids)] if names is not None else torch.empty(0, dtype=torch.long)
    rows = rows[rows < len(stamps)]
    return rows[stamps[rows] == index["stamps"][rows]]
