"""Parameters chosen by name."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_cl.errors import InputError

Patterns = str | Sequence[str] | None


class ParameterFilter:
    """What ``include`` matches (everything, by default), without what ``exclude`` matches.

    Args:
        include, exclude: Regular expressions for :func:`re.search` on parameter names.

    Raises:
        InputError: For what is not a regular expression.

    Example:
        >>> ParameterFilter("weight", r"head\\.")(dict.fromkeys(["net.weight", "net.bias", "head.weight"]))
        {'net.weight': None}
    """

    def __init__(self, include: Patterns = None, exclude: Patterns = None) -> None:
        self._include, self._exclude = _compiled("include", include), _compiled("exclude", exclude)

    def __call__(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Choose from name to parameter.

        Raises:
            InputError: For a pattern that matches none of them, or patterns that leave none.
        """
        for kind, patterns in (("include", self._include), ("exclude", self._exclude)):
            for pattern in patterns:
                if not any(pattern.search(name) for name in named):
                    raise InputError(
                        f"{kind}={pattern.pattern!r}, which matches no parameter's name",
                        "a regular expression that is found in at least one",
                        f"they are called {', '.join(list(named)[:5])}, ...",
                    )
        chosen = {
            name: parameter
            for name, parameter in named.items()
            if (not self._include or any(pattern.search(name) for pattern in self._include))
            and not any(pattern.search(name) for pattern in self._exclude)
        }
        if named and not chosen:
            given = ", ".join(
                f"{kind}={[pattern.pattern for pattern in patterns]!r}"
                for kind, patterns in (("include", self._include), ("exclude", self._exclude))
                if patterns
            )
            raise InputError(f"{given}, which leave no parameter", "at least one", "leave exclude out")
        return chosen


def _compiled(kind: str, given: Patterns) -> list[re.Pattern[str]]:
    compiled = []
    for pattern in [] if given is None else [given] if isinstance(given, str) else given:
        try:
            compiled.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise InputError(
                f"{kind}={pattern!r} ({error})", "a regular expression, or a list of them", r"a literal ( is \("
            ) from error
    return compiled
