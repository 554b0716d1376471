"""How examples are drawn: the same ones at every run, and all of them even where one fails."""

from typing import Any

from hypothesis import HealthCheck, Phase, settings


def examples(n: int) -> Any:
    """n examples, no shrinking: what was found is reported as it was found."""
    return settings(
        max_examples=n,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
