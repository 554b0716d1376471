"""What the command line says about an error that bad input causes: one line, with the closest thing that exists."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence

from lightning_cl._conf import conf_dir
from lightning_cl._overrides import at, close_keys, composed, referred
from lightning_cl._signatures import keyword_arguments
from lightning_cl.errors import InputError, shortened

# options that packages bring, and the extras of ours that install them
PLUGINS = {
    "hydra/sweeper/optuna": "sweep",
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "cluster",
    "hydra/launcher/submitit_slurm": "cluster",
}
MORE = "lightning-cl --help lists groups and options, --cfg job all keys"


def one_line(error: BaseException, overrides: Sequence[str] = ()) -> str | None:
    """The line for an error that bad input causes; None for what looks like a bug.

    Args:
        error: What was raised, perhaps around what caused it.
        overrides: The command line's ``key=value`` arguments, to name the value that is to blame.
    """
    found = _input_error(error, [str(text) for text in overrides])
    return " ".join(str(found).split()) if found else None


def _input_error(error: BaseException, overrides: list[str]) -> InputError | None:
    chain = list(_chain(error))
    for seen in chain:  # Hydra and joblib wrap what a constructor raised
        if isinstance(seen, InputError):
            return seen
    for seen in chain:
        kind, text = type(seen).__name__, str(seen)
        if kind == "InstantiationException":
            return _constructor(seen, text, overrides)
        if kind == "MissingMandatoryValue":
            key = getattr(seen, "full_key", None) or text.rpartition(" ")[2]
            return InputError(f"{key} is not set", "a value", f"set {key}=VALUE")
        if kind == "OverrideParseException":
            return _grammar(getattr(seen, "override", ""))
        if kind == "MissingConfigException" or re.search(r"Could not (find|load) '", text):
            option = re.search(r"Could not (?:find|load) '([^']*)'", text)
            if option:
                return _option(option.group(1), getattr(seen, "options", None) or [])
        present = re.search(r"An item is already at '([^']*)'", text)
        if present:
            given = _given(present.group(1), overrides)
            return InputError(f"{given}, a key that the config has", "no + before it", f"write {given.lstrip('+')}")
        unknown = re.match(r"Could not override '([^']*)'", text)
        if unknown:
            return _key(unknown.group(1), overrides)
    text = " ".join(str(error).split())
    if type(error).__module__.startswith(("hydra.", "omegaconf.", "antlr4")):
        return InputError(shortened(text, 300), "a config that composes", MORE)
    if isinstance(error, OSError):
        return InputError(text, "a readable and writable path", "check data_dir and hydra.run.dir")
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # ``raise error from error`` makes a ring
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _given(key: str, overrides: Iterable[str]) -> str:
    """The overrides at or below a key, as they were typed; the key itself if it was not typed."""
    names = [(text.lstrip("+~").partition("=")[0], text) for text in overrides]
    return ", ".join(text for name, text in names if name == key or name.startswith(f"{key}.")) or key


def _blamed(why: str, section: str, overrides: Sequence[str]) -> str:
    """The overrides that a section of the config is made of and whose key or value an error's text names."""
    refers_to = referred(at(composed(list(overrides)), section))
    found = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if key != section and not key.startswith(f"{section}.") and key not in refers_to:
            continue
        words = [re.escape(word) for word in (key.rpartition(".")[2], value) if word]
        if re.search(rf"(?<![\w.-])({'|'.join(words)})(?![\w.])", why):
            found.append(text)
    return ", ".join(found)


def _grammar(override: str) -> InputError:
    from lightning_cl.cli import SUBCOMMANDS

    close = difflib.get_close_matches(override, SUBCOMMANDS, n=1)
    hint = f"did you mean the subcommand {close[0]}? It comes first" if close else MORE
    return InputError(repr(override), f"group=option, key=value, or a subcommand ({', '.join(SUBCOMMANDS)})", hint)


def _option(path: str, found: Iterable[str]) -> InputError:
    """Hydra finds a user's options too, but names none for a list, and no option in a folder of its own."""
    # groups of ours have one part, and options may have more: experiment=budget/split_mnist
    parts = path.split("/")
    depth = 2 if parts[0] == "hydra" else 1
    group, option = "/".join(parts[:depth]), "/".join(parts[depth:])
    if path in PLUGINS:
        given = f"{group}={option}, which is not installed"
        return InputError(given, "the package that brings it", f"pip install 'lightning-cl[{PLUGINS[path]}]'")
    root = conf_dir() / group
    ours = [file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.yaml")]
    options = sorted({*ours, *(name for name in found if not (root / name).is_dir())})
    close = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {group}={close[0]}?" if close else MORE
    return InputError(f"{group}={option}", f"one of {', '.join(options)}", hint)


def _key(key: str, overrides: list[str]) -> InputError:
    config = composed([text for text in overrides if text.lstrip("+~").partition("=")[0] != key])
    parent, _, name = key.rpartition(".")
    section = at(config, parent)
    target = section.get("_target_") if isinstance(section, dict) else None
    arguments = list(keyword_arguments(target))
    given = _given(key, overrides)
    if name in arguments:
        return InputError(f"{given}, which the config leaves at its default", "a + before it", f"write +{given}")
    return InputError(f"{given} (no such key)", "a key of the config", close_keys(key, config) or MORE)


def _constructor(error: BaseException, text: str, overrides: list[str]) -> InputError:
    key = re.search(r"full_key: (\S+)", text)
    target = re.search(r"target '([^']+)'", text)
    name = target.group(1) if target else "the target"
    if "Error locating target" in text:
        root = list(_chain(error))[-1]
        given = f"{_given(key.group(1), overrides) if key else name} ({root})"
        return InputError(given, f"{name} to be a class or function", f"check that python can import {name}")
    cause = error.__cause__ or error.__context__ or error
    return constructor_error(key.group(1) if key else name, name, cause, overrides)


def constructor_error(key: str, target: str, cause: BaseException, overrides: Sequence[str] = ()) -> InputError:
    """What is said when the constructor of a section of the config refuses its arguments.

    Args:
        key: The section, for example ``"trainer"``.
        target: Import path of the constructor.
        cause: What it raised.
        overrides: The command line's, to name the value that is to blame.
    """
    why = " ".join(str(cause).split())[:300]
    given = f"{_blamed(why, key, overrides) or _given(key, overrides)} ({why})"
    if isinstance(cause, ImportError):
        return InputError(given, f"the packages that {target} needs", "install them; pyproject.toml lists our extras")
    wrong = re.search(r"unexpected keyword argument '(\w+)'", why)
    if wrong:
        arguments = list(keyword_arguments(target))
        close = difflib.get_close_matches(wrong.group(1), arguments, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(arguments)}"
        return InputError(given, f"an argument of {target}", hint)
    return InputError(given, f"arguments that {target} takes", "HYDRA_FULL_ERROR=1 shows where it failed")
