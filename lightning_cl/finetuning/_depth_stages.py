"""The pieces before the head, in stages."""

from collections.abc import Sequence
from itertools import chain, groupby

from lightning_cl.finetuning._depth_pieces import Piece

Segment = list[Piece]


def stages_of(pieces: Sequence[Piece], room: int | None) -> list[Segment]:
    """Stem and stages, ``room`` of them at most; one for each block if it is None."""
    if not pieces:
        return []
    kinds = ("block",) if any(p.kind == "block" for p in pieces) else ("soft", "layer")
    stem, runs = _runs(pieces, kinds)
    if not runs:
        return [stem]
    # lists of blocks are stages by nature; one or two of them say too little
    single = room is None or sum(len(run) > 1 for run in runs) < 3
    segments = [[unit] for run in runs for unit in run] if single else [[*run] for run in runs]
    origin = [i for i, run in enumerate(runs) for _ in run] if single else [0] * len(runs)
    if room is not None:
        cuts = _partition([len(s) for s in segments], origin, max(1, room - 1))
        segments = [[*chain(*segments[a:b])] for a, b in cuts]
    return [stem, *([*chain(*segment)] for segment in segments)]


def _runs(pieces: Sequence[Piece], kinds: tuple[str, ...]) -> tuple[Segment, list[list[Segment]]]:
    """The stem, and the blocks by the list that holds them, each with the pieces that go with it.

    What stands between two lists leads to the second (a downsampling); what follows on a block in its own list, or on
    the last one, goes with that block.
    """
    driving = _driving(pieces, kinds)
    if not driving:
        return list(pieces), []
    begins = driving[0]
    if kinds != ("block",) or all(p.kind == "parameter" for p in pieces[:begins]):  # the first one is the stem
        begins = driving[1] if len(driving) > 1 else len(pieces)
        begins = _after_stem(pieces, driving[0], begins, kinds)
    stem, rest = list(pieces[:begins]), driving[1:] if driving[0] < begins else driving
    if not rest:
        return list(pieces), []
    runs: list[list[Segment]] = []
    for _, members in groupby(rest, key=lambda i: pieces[i].parent if kinds == ("block",) else ""):
        runs.append([[pieces[i]] for i in members])
    _attach(pieces[begins:], [unit for run in runs for unit in run], {id(run[-1][0]) for run in runs[:-1]})
    return stem, runs


def _attach(pieces: Sequence[Piece], units: list[Segment], ends: set[int]) -> None:
    """Put what drives no stage beside what does.

    Args:
        pieces: All of them, in order.
        units: Those that drive, each in a list of its own, which is added to.
        ends: Ids of the last block of each list but the last.
    """
    at, leading = 0, len(units)
    waiting: Segment = []
    for piece in pieces:
        if at < leading and piece is units[at][0]:
            units[at][:0], waiting = waiting, []
            at += 1
            continue
        previous, coming = units[at - 1] if at else None, units[at] if at < leading else None
        if previous is None or (coming is not None and _leads(piece, previous, coming, ends, bool(waiting))):
            waiting.append(piece)
        else:
            previous.append(piece)


def _leads(piece: Piece, previous: Segment, coming: Segment, ends: set[int], others: bool) -> bool:
    """Whether a piece goes with the block to come: between two lists, unless it stands in the part of the first."""
    if others or piece.kind == "parameter":
        return True
    block = next((p for p in previous if p.kind == "block"), None)
    if block is None or id(block) not in ends:
        return False
    return _common(piece, block) <= _common(piece, coming[0])


def _common(a: Piece, b: Piece) -> int:
    """How many parents they share."""
    shared = 0
    for x, y in zip(a.name.split("."), b.name.split("."), strict=False):
        if x != y:
            break
        shared += 1
    return shared


def _driving(pieces: Sequence[Piece], kinds: tuple[str, ...]) -> list[int]:
    """Places of the pieces that make stages; a block beside a list of blocks only leads to it."""
    found = [i for i, p in enumerate(pieces) if p.kind in kinds and p.weighs]
    parents = [pieces[i].parent for i in found]
    leads = set()
    for n in range(1, len(found) - 1):
        before, own, after = parents[n - 1 : n + 2]
        if own and own not in (before, after) and (before.startswith(f"{own}.") or after.startswith(f"{own}.")):
            leads.add(n)
    return [i for n, i in enumerate(found) if n not in leads]


def _after_stem(pieces: Sequence[Piece], first: int, begins: int, kinds: tuple[str, ...]) -> int:
    """Where the stem ends: norms behind its layer are its own, parameters lead to what comes."""
    end = first + 1
    while end < begins and pieces[end].kind != "parameter" and kinds != ("block",):
        end += 1
    return end


def _partition(weights: Sequence[int], origin: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Cut a row into at most ``room`` parts, (start, end), of the least sum of squared weights.

    A part that holds what has another origin costs more than any other, so that it is made only where there is no room.
    """
    n, k = len(weights), min(room, len(weights))
    total = sum(weights) ** 2 + 1

    def cost(a: int, b: int) -> int:
        return sum(weights[a:b]) ** 2 + total * (len(set(origin[a:b])) - 1)

    best = {(0, 0): (0, 0)}
    for parts in range(1, k + 1):
        for end in range(parts, n + 1):
            starts = [a for a in range(parts - 1, end) if (parts - 1, a) in best]
            options = [(best[parts - 1, a][0] + cost(a, end), -a) for a in starts]
            value, start = min(options)
            best[parts, end] = (value, -start)
    cuts, end = [], n
    for parts in range(k, 0, -1):
        start = best[parts, end][1]
        cuts.append((start, end))
        end = start
    return cuts[::-1]
