"""The errors that a person sees without a traceback."""


class Stopped(RuntimeError):
    """Training was asked to stop before its end; the same command goes on later."""


class InputError(ValueError):
    """Bad input, said in one line: what was given, what was expected, and what to do.

    The command line turns it into that line and exit code 2; in Python it is an ordinary ``ValueError``.

    Args:
        given: What was found, with the offending value in ``repr`` form.
        expected: What would have been right.
        hint: What to do about it.

    Example:
        >>> str(InputError("memory_size=0", "an integer >= 1", "set memory_size=200"))
        'memory_size=0; expected an integer >= 1. HINT: set memory_size=200'
    """

    def __init__(self, given: str, expected: str, hint: str) -> None:
        self.given, self.expected, self.hint = given, expected, hint
        super().__init__(f"{given}; expected {expected}. HINT: {hint}")

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, str, str]]:
        """Keep the three parts when the error crosses a process border (joblib jobs)."""
        return type(self), (self.given, self.expected, self.hint)


def shortened(error: BaseException | str, most: int = 200) -> str:
    """What an error says, in one line; a longer one is cut between words.

    Args:
        error: The error, or its text.
        most: How many characters are kept.

    Example:
        >>> shortened(OSError("no route to the host"), most=16)
        'no route to the ...'
    """
    text = " ".join(str(error).split())
    if len(text) <= most:
        return text
    return f"{text[: most + 1].rpartition(' ')[0] or text[:most]} ..."


class FolderInUse(InputError):
    """Another process works in the run folder."""
