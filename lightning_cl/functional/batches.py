"""Per-sample work on anybody's batches: size, selection, concatenation, and a flat view of the leaves.

A *leaf* holds one entry per sample: a tensor with a leading batch dimension, a list of things that are not tensors
(strings, numbers, one dict per sample), or a tuple of strings (what torch's collate makes of strings in tuples). What
is around the leaves is structure: tuples, named tuples, lists of tensors (what torch's collate makes of a tuple),
mappings, dataclasses and plain objects with tensor attributes. ``None``, zero-dimensional tensors and single values
belong to the structure and are kept as they are.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Leaf = Tensor | list[Any]
#: What integer leaves of this name are padded with: the ignored label of Hugging Face and of ``cross_entropy``.
PADDING = {"labels": -100}


def batch_size(batch: Any) -> int:
    """Number of samples: the leading size of the first leaf.

    Raises:
        ValueError: If the batch has no leaf.

    Example:
        >>> batch_size({"image": torch.zeros(3, 8), "name": ["a", "b", "c"]})
        3
    """
    for _, leaf in _walk(batch, ""):
        return len(leaf)
    raise ValueError(
        f"a batch of type {type(batch).__name__!r} without per-sample leaves; expected a tensor, or a tuple, list, "
        "mapping, dataclass or object that holds tensors. HINT: return tensors from the collate function"
    )


def leaves(batch: Any) -> dict[str, Leaf]:
    """Path -> per-sample leaf, e.g. ``{"0": x, "1": y}`` or ``{"image": x, "meta/name": [...]}``.

    The path of a bare tensor is ``""``.

    Raises:
        ValueError: If the leaves do not have one entry per sample each (graphs, several loaders in one batch).
    """
    found = dict(_walk(batch, ""))
    sizes = [leaf.shape[0] if isinstance(leaf, Tensor) else len(leaf) for leaf in found.values()]
    size = sizes[0] if sizes else batch_size(batch)
    for (path, leaf), n in zip(found.items(), sizes, strict=True):
        if n != size:
            first = next(iter(found))
            raise ValueError(
                f"leaf {path!r} of length {len(leaf)} beside leaf {first!r} of length {size}; expected one entry per "
                "sample in every leaf of the batch. HINT: keep constants out of the batch, and give graphs or "
                "several loaders as one batch dimension"
            )
    return found


def select(batch: Any, indices: Tensor | slice) -> Any:
    """The samples at ``indices`` (long or bool tensor, or slice), in the same structure; lists are selected too.

    Example:
        >>> select((torch.arange(4), ["a", "b", "c", "d"]), torch.tensor([2, 0]))
        (tensor([2, 0]), ['c', 'a'])
    """
    return rebuild(batch, {path: select_leaf(leaf, indices) for path, leaf in leaves(batch).items()})


def select_leaf(leaf: Leaf, indices: Tensor | slice) -> Leaf:
    """The entries of one leaf at ``indices``."""
    if isinstance(leaf, Tensor):
        return leaf[indices if isinstance(indices, slice) else indices.to(leaf.device)]
    if isinstance(indices, slice):
        return leaf[indices]
    if indices.dtype == torch.bool:
        indices = indices.nonzero().flatten()
    return [leaf[i] for i in indices.tolist()]


def rebuild(template: Any, leaves: Mapping[str, Leaf]) -> Any:
    """The structure of ``template`` with these leaves in it; ``template`` is not changed.

    Raises:
        KeyError: If a leaf of the template is missing in ``leaves``.
    """
    return _map(template, "", lambda path, _: leaves[path])


def clone_batch(batch: Any) -> Any:
    """A copy of the batch that does not share its leaves."""
    copies = {path: leaf.clone() if isinstance(leaf, Tensor) else [*leaf] for path, leaf in leaves(batch).items()}
    return rebuild(batch, copies)


def concatenate(a: Any, b: Any) -> Any:
    """``a``'s samples followed by ``b``'s, in the structure of ``a``, on its device, in its floating dtype.

    Tensors of unequal trailing length (padded token batches) are right-padded to equal length, see :func:`pad_to`.

    Raises:
        ValueError: If the two do not have the same leaves.
    """
    left, right = leaves(a), leaves(b)
    if left.keys() != right.keys():
        raise ValueError(
            f"a batch with leaves {sorted(right)}; expected {sorted(left)}. "
            "HINT: batches that are put together need one structure"
        )
    return rebuild(a, {path: concatenate_leaves(path, left[path], right[path]) for path in left})


def concatenate_leaves(path: str, a: Leaf, b: Leaf) -> Leaf:
    """Two leaves of the same path, one after the other."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return [*a, *b]
    both_floating = a.is_floating_point() and b.is_floating_point()
    b = b.to(device=a.device, dtype=a.dtype if both_floating else b.dtype)
    if a.shape[1:] != b.shape[1:]:
        shape = common_shape(path, a.shape[1:], b.shape[1:])
        a, b = pad_to(path, a, shape), pad_to(path, b, shape)
    return torch.cat([a, b])


def common_shape(path: str, a: torch.Size, b: torch.Size) -> torch.Size:
    """The smallest per-sample shape that holds both.

    Raises:
        ValueError: If they differ in the number of dimensions.
    """
    if len(a) != len(b):
        raise ValueError(
            f"leaf {path!r} with per-sample shapes {tuple(a)} and {tuple(b)}; expected as many dimensions in both. "
            "HINT: batches that are put together need one structure"
        )
    return torch.Size(max(pair) for pair in zip(a, b, strict=True))


def pad_to(path: str, leaf: Tensor, shape: torch.Size) -> Tensor:
    """Right-pad (N, ...) to (N, *shape) with zeros, or with -100 for an integer leaf named ``labels``."""
    if leaf.shape[1:] == shape:
        return leaf
    filler = PADDING.get(path.rpartition("/")[2], 0) if not leaf.is_floating_point() and leaf.dtype != torch.bool else 0
    padded = leaf.new_full((len(leaf), *shape), filler)
    padded[(slice(None), *(slice(size) for size in leaf.shape[1:]))] = leaf
    return padded


def _children(node: Any) -> dict[str, Any] | None:
    """Name -> child of a structure; None for what is not one."""
    if isinstance(node, Mapping):
        return {str(key): value for key, value in node.items()}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return dict(zip(node._fields, node, strict=True))
    if isinstance(node, tuple | list):
        return {str(position): value for position, value in enumerate(node)}
    if isinstance(node, type | str | bytes | Tensor):
        return None
    if dataclasses.is_dataclass(node):
        return {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    attributes = getattr(node, "__dict__", None)
    return attributes if attributes and any(isinstance(value, Tensor) for value in attributes.values()) else None


def _is_leaf(node: Any) -> bool:
    if isinstance(node, Tensor):
        return node.ndim > 0
    if _is_strings(node):
        return True
    # A list of tensors or of lists is a structure: torch's collate makes lists of tuples. One dict per sample is not.
    return isinstance(node, list) and len(node) > 0 and not any(isinstance(x, Tensor | tuple | list) for x in node)


def _is_strings(node: Any) -> bool:
    return type(node) is tuple and len(node) > 0 and all(isinstance(x, str | bytes) for x in node)


def _walk(node: Any, path: str) -> Iterator[tuple[str, Leaf]]:
    if _is_leaf(node):
        yield path, list(node) if isinstance(node, tuple) else node
        return
    for name, child in (_children(node) or {}).items():
        yield from _walk(child, f"{path}/{name}" if path else name)


def _map(node: Any, path: str, function: Callable[[str, Leaf], Leaf]) -> Any:
    if _is_leaf(node):
        return tuple(function(path, list(node))) if isinstance(node, tuple) else function(path, node)
    children = _children(node)
    if children is None:
        return node
    new = {name: _map(child, f"{path}/{name}" if path else name, function) for name, child in children.items()}
    if isinstance(node, Mapping):
        return _rebuild_mapping(node, dict(zip(node.keys(), new.values(), strict=True)))
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*new.values())
    if isinstance(node, tuple | list):
        return type(node)(new.values())
    clone = copy.copy(node)
    for name, value in new.items():
        # frozen dataclasses refuse setattr
        object.__setattr__(clone, name, value)
    return clone


def _rebuild_mapping(node: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(node) is dict:
        return items
    # A copy keeps what a mapping carries beside its items (a default factory, encodings and tensor type of a
    # Hugging Face BatchEncoding), where it can be written to.
    clone: Any = copy.copy(node)
    if getattr(clone, "data", None) is getattr(node, "data", clone):
        clone.data = dict(clone.data)  # UserDict-like classes without __copy__ share it
    if hasattr(clone, "__setitem__"):
        for key, value in items.items():
            clone[key] = value
        return clone
    return type(node)(items)  # type: ignore[call-arg]
