"""Checks the run options in a checkpoint, so that they can't run code or write elsewhere.

A checkpoint can come from anyone, and its options become a config. Allowed are plain values,
callbacks, loggers and profilers of Lightning and gptlit with plain arguments, and folders within
the run's own. Everything else is refused, unless the user gives the option or trusts the
checkpoint. The checks import nothing.
"""

import inspect
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, LambdaCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from gptlit.data.token_file import DATA_DIR, has_tokens
from gptlit.messages import UsageError
from gptlit.plain_values import hints_of, not_plain
from gptlit.runs import run_folder
from gptlit.terminal import printable

FLAG = "--trust_checkpoint true"
CLASSES = {"callbacks": Callback, "logger": Logger, "profiler": Profiler, "plugins": None}
BY_NAME = ("trainer.strategy", "trainer.accelerator")  # strings that could name a class
PROFILERS = ("simple", "advanced", "pytorch", "xla")
REFUSED = (LambdaCallback,)  # calls its arguments
MOST_VALUES = 20_000  # aliases can make a short YAML text huge

_FOLDER = re.compile(r"(^|_)(dir|dirpath|path|folder|root|location)$")
_REMOTE = re.compile(r"(^|_)(api_key|uri|url|host|entity|workspace)$")


class _Refused(Exception):
    """Options are refused.

    Args:
        effect: What the options would do, with "options" as the subject.
        option: Flag that the user could give instead.
    """

    def __init__(self, effect: str, option: str) -> None:
        super().__init__(f"options {effect}")
        self.remedy = f"give {option} yourself"


class _Linked(_Refused):
    """The run's folder has a link to a place outside of it."""

    def __init__(self, link: Path) -> None:
        Exception.__init__(self, f"folder has the link {link} to {link.resolve()}, outside of it")
        self.remedy = "remove the link"


def check(
    options: Mapping[str, Any],
    path: Path,
    given: Collection[str],
    groups: Mapping[str, type],
) -> dict[str, Any]:
    """Return the options of a checkpoint's run, without those that the user gives.

    Args:
        options: Options in the checkpoint.
        path: Path of the checkpoint.
        given: Names of options, such as trainer.logger, that the user gives.
        groups: Class whose arguments the options of a group are.

    Raises:
        UsageError: An option is refused; the message names the flag that would allow it.
    """
    try:
        if not _is_small(options):
            raise _Refused("are too many to be those of a run", "--config CONFIG")
        own = _Options(path, given)
        if "trainer" in options:
            own.check_links()
        return own.checked(options, {**groups, "trainer": L.Trainer})
    except _Refused as error:
        raise UsageError(
            f"--ckpt_path {path}: its run's {printable(str(error), one_line=True)}; give {FLAG} if "
            f"you trust the source of the checkpoint, or {printable(error.remedy, one_line=True)}"
        ) from error


def _hints(made: type) -> dict[str, Any]:
    hints = hints_of(made.__init__)  # type: ignore[misc]  # the hints of exactly this class
    if "__signature__" in vars(made):  # its options are those of a dataclass
        hints |= hints_of(made)
    return hints


def _is_small(options: Mapping[str, Any]) -> bool:
    n_values, waiting = 0, [options]
    while waiting and n_values <= MOST_VALUES:
        value: Any = waiting.pop()
        if isinstance(value, dict | list):
            n_values += len(value)
            waiting += value.values() if isinstance(value, dict) else value
    return n_values <= MOST_VALUES


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path is in a folder once links are resolved."""
    return folder.resolve() in path.resolve().parents


class _Options:
    def __init__(self, path: Path, given: Collection[str]) -> None:
        self.given = given
        self.run = run_folder.of_checkpoint(path)
        self.root = self.run.absolute().parent.parent if self.run else None
        self.place = self.root or Path.cwd()  # folder that a resumed run writes to
        self.began: Path | None = None  # working folder of the first command of the run

    def check_links(self) -> None:
        """Refuse links in the run's folder through which a resumed run would write elsewhere."""
        if self.run is None:
            return
        for path in self.run.rglob("*"):
            if path.is_symlink() and not _is_within(path, self.run):
                raise _Linked(path)

    def checked(self, options: Mapping[str, Any], groups: Mapping[str, type]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        self.began = self._where_it_began(options)
        for group, values in options.items():
            if not isinstance(values, dict):
                self._plain(values, None, str(group))
                kept[group] = values
                continue
            hints = _hints(groups[group]) if group in groups else {}
            kept[group] = {
                name: self._option(f"{group}.{name}", value, hints.get(name))
                for name, value in values.items()
                if f"{group}.{name}" not in self.given
            }
        return kept

    def _option(self, name: str, value: Any, hint: Any) -> Any:
        group, _, own = name.partition(".")
        if group == "trainer" and own in CLASSES:
            return self._classes(name, value, own)
        self._plain(value, hint, name)
        if name in BY_NAME and isinstance(value, str) and not re.fullmatch(r"[\w-]+", value):
            raise _Refused(f"name the class {value} ({name})", f"--{name}")
        if name == "trainer.model_registry" and value is not None:
            raise _Refused(f"upload checkpoints to {value} ({name})", f"--{name}")
        if name == "trainer.default_root_dir" and value is not None:
            return self._root(name, str(value))
        if name == "data.data_dir" and value != DATA_DIR and not has_tokens(Path(str(value))):
            return self._texts(name, str(value))
        return value

    def _plain(self, value: Any, hint: Any, name: str) -> None:
        for part, found in not_plain(value, hint, name):
            if part.endswith(".class_path"):
                raise _Refused(f"name the class {found} ({part})", f"--{name}")
            raise _Refused(f"hold more than plain values: {part} is {found!r:.200}", f"--{name}")

    # -------------------------------------------------------------- classes

    def _classes(self, name: str, value: Any, kind: str) -> Any:
        if isinstance(value, list):
            return [self._classes(name, each, kind) for each in value]
        if isinstance(value, dict):
            return self._class(name, value, CLASSES[kind])
        if not isinstance(value, str) or (kind == "profiler" and value in PROFILERS):
            return value
        raise _Refused(f"name the class {value} ({name})", f"--{name}")

    def _class(self, name: str, value: Mapping[str, Any], base: type | None) -> dict[str, Any]:
        path = value.get("class_path")
        known = _known_class(path, base)
        arguments = value.get("init_args") or {}
        extra = set(value) - {"class_path", "init_args", "dict_kwargs"}
        if known is None or extra or not isinstance(arguments, dict):
            raise _Refused(f"name the class {path} ({name})", f"--{name}")
        self._plain(value.get("dict_kwargs") or {}, dict[str, int], f"{name}.dict_kwargs")
        hints, defaults = _hints(known), inspect.signature(known).parameters
        kept = {n: each for n, each in arguments.items() if f"{name}.{n}" not in self.given}
        for own, each in kept.items():
            if own in defaults and each == _as_written(defaults[own].default):
                continue
            part = f"{name}.{own}"
            for at, found in not_plain(each, hints.get(own, Any), part):
                what = f"give the class {path} more than plain values: {at} is {found!r:.200}"
                raise _Refused(what, f"--{name}")
            for text in _strings(each):
                self._argument(name, own, text)
        return {**value, "init_args": kept}

    def _argument(self, name: str, own: str, value: str) -> None:
        """Refuse an argument of a class that names a remote address or another folder."""
        if _REMOTE.search(own) or re.search("://|::", value):
            raise _Refused(f"send to {value} ({name}.{own})", f"--{name}")
        if _FOLDER.search(own):
            self._own(f"{name}.{own}", value, f"--{name}")
        elif (
            Path(value).is_absolute()
            or re.search(r"^~|\0|(^|[/\\])\.\.([/\\]|$)", value)
            or (value and not _is_within(self.place / value, self.place))
        ):
            raise _Refused(f"write to {value} ({name}.{own})", f"--{name}")

    # -------------------------------------------------------------- folders

    def _own(self, name: str, value: str, option: str) -> None:
        if "\0" in value:
            raise _Refused(f"write to {value} ({name})", option)
        folder = Path(value).expanduser().absolute().resolve()
        if self.root is not None and self.run is not None:
            run = self.run.absolute().resolve()
            if folder == self.root.resolve() or folder == run or run in folder.parents:
                return
        raise _Refused(f"write to {value} ({name}), outside of its run's folder", option)

    def _where_it_began(self, options: Mapping[str, Any]) -> Path | None:
        """Return the working folder of the run's first command, to which its paths are relative."""
        trainer = options.get("trainer")
        value = trainer.get("default_root_dir") if isinstance(trainer, dict) else None
        parts = Path(str(value or ".")).parts
        if self.root is None or not parts:
            return self.root
        return (
            self.root.parents[len(parts) - 1] if self.root.parts[-len(parts) :] == parts else None
        )

    def _texts(self, name: str, value: str) -> str:
        """Return the folder of a run's texts, which may be relative to another working folder."""
        if self.began and not Path(value).is_absolute():
            folder = self.began / value
            if has_tokens(folder) and _is_within(folder, self.began):
                return str(folder)
        self._own(name, value, f"--{name}")
        return value

    def _root(self, name: str, value: str) -> str:
        """Return the root of a run's folder, which may be relative to another working folder."""
        folder = Path(value)
        if folder.expanduser().absolute().resolve() == Path.cwd().resolve():
            return value
        parts = folder.parts
        if self.root and not folder.is_absolute() and self.root.parts[-len(parts) :] == parts:
            same = folder.absolute().resolve() == self.root.resolve()
            return value if same else str(self.root)
        self._own(name, value, f"--{name}")
        return value


def _known_class(path: Any, base: type | None) -> type | None:
    """Return the class of a dotted name if it is allowed; imports nothing."""
    if not isinstance(path, str) or base is None:
        return None
    module, _, name = path.rpartition(".")
    if not re.fullmatch(r"(lightning\.pytorch|gptlit)(\.\w+)*", module):
        return None
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type) or not issubclass(found, base) or issubclass(found, REFUSED):
        return None
    own = re.match(r"(lightning\.pytorch|gptlit)\.", found.__module__)
    return found if own else None


def _as_written(default: Any) -> Any:
    return str(default) if isinstance(default, Path) else default


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in _strings(each)] if isinstance(value, list) else []
