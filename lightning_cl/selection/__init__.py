"""Which pretrained model suits a stream: features of each candidate, scored and ranked.

Nothing heavy is imported until a name is used.
"""

from lightning_cl._lazy import lazy

_WHERE = {
    "Candidate": "candidates",
    "Scores": "scores",
    "SelectRequest": "ranking",
    "extract_features": "features",
    "parse_candidate": "candidates",
    "score_features": "scores",
    "select_models": "ranking",
}
__all__ = sorted(_WHERE)
__getattr__ = lazy(__name__, _WHERE)
