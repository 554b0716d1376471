"""What became of every tensor when weights were loaded."""

from dataclasses import dataclass, field


@dataclass
class WeightsReport:
    """Names of tensors, by what became of them; ``str()`` is a text of several lines.

    Args:
        source: What was loaded, as messages call it.
        loaded: Tensors of the model that have the file's values, classifiers loaded as they are among them.
        resized: Tensors of classifiers of which some rows are the file's.
        kept: Tensors of classifiers that stay as the model has them.
        missing: Tensors of the model that the file lacks.
        mismatched: Tensors of another shape in the file, which stay as the model has them: (file's, model's).
        skipped: Tensors of the file that fit nothing in the model.
        heads: What happened to each classifier that was not loaded as it is, in words.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every tensor of the model has the file's values."""
        return not (self.resized or self.kept or self.missing or self.mismatched)

    def summary(self) -> str:
        """One line.

        Example:
            >>> WeightsReport("weights='a.pt'", loaded=["w", "b"], skipped=["c"]).summary()
            "weights='a.pt': 2 tensors loaded, 1 of the file not used"
        """
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{where}: {text}" for where, text in self.heads.items()]
        counts = (
            (self.missing, "missing"),
            (self.mismatched, "of another shape"),
            (self.skipped, "of the file not used"),
        )
        parts += [f"{len(names)} {text}" for names, text in counts if names]
        return f"{self.source}: {', '.join(parts)}"

    def __str__(self) -> str:
        lines = [self.summary()]
        for title in ("resized", "kept", "missing", "skipped"):
            lines += [f"  {title}: {name}" for name in getattr(self, title)]
        return "\n".join(
            [*lines, *(f"  mismatched: {k} {a} in the file, {b}" for k, (a, b) in self.mismatched.items())]
        )
