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

CLASSES = {"callbacks": Callback, "logger": Logger, "profiler": Profiler, "plugins": None}
BY_NAME = ("trainer.strategy", "trainer.accelerator")  # strings that could name a class
PROFILERS = ("simple", "advanced", "pytorch", "xla")
REFUSED = (LambdaCallback,)  # calls its arguments
MOST_VALUES = 20_000  # aliases can make a short YAML text huge

_FOLDER = re.compile(r"(^|_)(dir|dirpath|path|folder|root|location)$")
_REMOTE = re.compile(r"(^|_)(api_key|uri|url|host|entity|workspace)$")


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
    checker = _Checker(path, given)
    if not _is_small(options):
        raise checker.refused("are too many to be those of a run", "config CONFIG")
    if "trainer" in options:
        checker.check_links()
    return checker.checked(options, {**groups, "trainer": L.Trainer})


class _Checker:
    def __init__(self, path: Path, given: Collection[str]) -> None:
        self.path = path
        self.given = given
        self.run = run_folder.of_checkpoint(path)
        # the run's default_root_dir, and the working folder of its first command
        self.root = self.run.absolute().parent.parent if self.run else None
        self.first_cwd: Path | None = None

    def refused(self, effect: str, option: str) -> UsageError:
        """Return the error for options that would have an effect such as "name the class a.B"."""
        return self._error(f"options {effect}", f"give --{option} yourself")

    def _error(self, reason: str, remedy: str) -> UsageError:
        reason, remedy = (printable(each, one_line=True) for each in (reason, remedy))
        return UsageError(
            f"--ckpt_path {self.path}: its run's {reason}; give --trust_checkpoint true if you "
            f"trust the source of the checkpoint, or {remedy}"
        )

    def check_links(self) -> None:
        """Refuse links in the run's folder through which a resumed run would write elsewhere."""
        if self.run is None:
            return
        for path in self.run.rglob("*"):
            if path.is_symlink() and not _is_within(path, self.run):
                reason = f"folder has the link {path} to {path.resolve()}, outside of it"
                raise self._error(reason, "remove the link")

    def checked(self, options: Mapping[str, Any], groups: Mapping[str, type]) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        self.first_cwd = self._first_working_folder(options)
        for group, values in options.items():
            if not isinstance(values, dict):
                self._check_plain(values, None, str(group))
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
        group, _, short = name.partition(".")
        if group == "trainer" and short in CLASSES:
            return self._classes(name, value, short)
        self._check_plain(value, hint, name)
        if name in BY_NAME and isinstance(value, str) and not re.fullmatch(r"[\w-]+", value):
            raise self.refused(f"name the class {value} ({name})", name)
        if name == "trainer.model_registry" and value is not None:
            raise self.refused(f"upload checkpoints to {value} ({name})", name)
        if name == "trainer.default_root_dir" and value is not None:
            return self._root_folder(name, str(value))
        if name == "data.data_dir" and value != DATA_DIR and not has_tokens(Path(str(value))):
            return self._texts_folder(name, str(value))
        return value

    def _check_plain(self, value: Any, hint: Any, name: str) -> None:
        for part, found in not_plain(value, hint, name):
            if part.endswith(".class_path"):
                raise self.refused(f"name the class {found} ({part})", name)
            raise self.refused(f"hold more than plain values: {part} is {found!r:.200}", name)

    # -------------------------------------------------------------- classes

    def _classes(self, name: str, value: Any, kind: str) -> Any:
        if isinstance(value, list):
            return [self._classes(name, each, kind) for each in value]
        if isinstance(value, dict):
            return self._class(name, value, CLASSES[kind])
        if not isinstance(value, str) or (kind == "profiler" and value in PROFILERS):
            return value
        raise self.refused(f"name the class {value} ({name})", name)

    def _class(self, name: str, value: Mapping[str, Any], base: type | None) -> dict[str, Any]:
        path, arguments = value.get("class_path"), value.get("init_args") or {}
        class_ = _known_class(path, base)
        others = set(value) - {"class_path", "init_args", "dict_kwargs"}
        if class_ is None or others or not isinstance(arguments, dict):
            raise self.refused(f"name the class {path} ({name})", name)
        self._check_plain(value.get("dict_kwargs") or {}, dict[str, int], f"{name}.dict_kwargs")
        hints, parameters = _hints(class_), inspect.signature(class_).parameters
        kept = {n: each for n, each in arguments.items() if f"{name}.{n}" not in self.given}
        for argument, each in kept.items():
            default = parameters[argument].default if argument in parameters else ...
            if each == (str(default) if isinstance(default, Path) else default):
                continue
            for part, found in not_plain(each, hints.get(argument, Any), f"{name}.{argument}"):
                effect = f"give the class {path} more than plain values: {part} is {found!r:.200}"
                raise self.refused(effect, name)
            for text in _strings(each):
                self._check_argument(name, argument, text)
        return {**value, "init_args": kept}

    def _check_argument(self, name: str, argument: str, value: str) -> None:
        """Refuse an argument of a class that names a remote address or another folder."""
        if _REMOTE.search(argument) or re.search("://|::", value):
            raise self.refused(f"send to {value} ({name}.{argument})", name)
        written_to = self.root or Path.cwd()
        if _FOLDER.search(argument):
            self._check_folder(f"{name}.{argument}", value, name)
        elif (
            Path(value).is_absolute()
            or re.search(r"^~|\0|(^|[/\\])\.\.([/\\]|$)", value)
            or (value and not _is_within(written_to / value, written_to))
        ):
            raise self.refused(f"write to {value} ({name}.{argument})", name)

    # -------------------------------------------------------------- folders

    def _check_folder(self, name: str, value: str, option: str) -> None:
        """Refuse a folder that is neither the run's, nor within it, nor the root of its runs."""
        if self.root and self.run and "\0" not in value:
            folder = Path(value).expanduser().absolute().resolve()
            run = self.run.absolute().resolve()
            if folder in (self.root.resolve(), run) or run in folder.parents:
                return
        raise self.refused(f"write to {value} ({name}), outside of its run's folder", option)

    def _first_working_folder(self, options: Mapping[str, Any]) -> Path | None:
        """Return the working folder of the run's first command, to which its paths are relative."""
        trainer = options.get("trainer")
        value = trainer.get("default_root_dir") if isinstance(trainer, dict) else None
        parts = Path(str(value or ".")).parts
        if self.root is None or not parts:
            return self.root
        is_root = self.root.parts[-len(parts) :] == parts
        return self.root.parents[len(parts) - 1] if is_root else None

    def _texts_folder(self, name: str, value: str) -> str:
        """Return the folder of a run's texts, which may be relative to another working folder."""
        if self.first_cwd and not Path(value).is_absolute():
            folder = self.first_cwd / value
            if has_tokens(folder) and _is_within(folder, self.first_cwd):
                return str(folder)
        self._check_folder(name, value, name)
        return value

    def _root_folder(self, name: str, value: str) -> str:
        """Return the root of a run's folder, which may be relative to another working folder."""
        folder = Path(value)
        if folder.expanduser().absolute().resolve() == Path.cwd().resolve():
            return value
        parts = folder.parts
        if self.root and not folder.is_absolute() and self.root.parts[-len(parts) :] == parts:
            same = folder.absolute().resolve() == self.root.resolve()
            return value if same else str(self.root)
        self._check_folder(name, value, name)
        return value


def _known_class(path: Any, base: type | None) -> type | None:
    """Return the class of a dotted name if it is allowed; imports nothing."""
    if not isinstance(path, str) or base is None:
        return None
    module, _, name = path.rpartition(".")
    if not re.fullmatch(r"(lightning\.pytorch|gptlit)(\.\w+)*", module):
        return None
    class_ = getattr(sys.modules.get(module), name, None)
    if not isinstance(class_, type) or not issubclass(class_, base) or issubclass(class_, REFUSED):
        return None
    return class_ if re.match(r"(lightning\.pytorch|gptlit)\.", class_.__module__) else None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for each in value for text in _strings(each)] if isinstance(value, list) else []


def _hints(class_: type) -> dict[str, Any]:
    hints = hints_of(class_.__init__)  # type: ignore[misc]  # the hints of exactly this class
    if "__signature__" in vars(class_):  # its options are those of a dataclass
        hints |= hints_of(class_)
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
