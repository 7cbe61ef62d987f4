"""Finds the configs and the study files that are named on a command line."""

from pathlib import Path
from typing import Any

import yaml

from gptlit.corpora import inputs
from gptlit.corpora.text_encodings import not_utf8
from gptlit.files import configs_folder
from gptlit.messages import UsageError, did_you_mean, errors_about
from gptlit.parser import GROUPS
from gptlit.yaml_keys import refuse_duplicates

STUDIES = "studies/"  # the folder of configs that are study files


def shipped_configs() -> dict[str, Path]:
    """Return the configs installed with the package, by their path within its folder."""
    folder = configs_folder()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    configs = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in configs.items() if not name.startswith(STUDIES)}


def shipped_studies() -> dict[str, Path]:
    """Return the study files installed with the package, by name."""
    folder = configs_folder() / STUDIES
    return {path.name: path for path in sorted(folder.glob("*.yaml"))}


def find_study(name: str) -> Path:
    """Return the study file at a path, or else the shipped one of that name.

    Raises:
        UsageError: There is no such file.
    """
    inputs.refuse_endless(path := Path(name).expanduser(), "gptlit study")
    if path.is_file():
        return path
    shipped = shipped_studies()
    if found := shipped.get(name) or shipped.get(f"{name}.yaml"):
        return found
    raise UsageError(
        f"{name}: no such file, and not one of the shipped "
        f"{', '.join(Path(each).stem for each in shipped)}.{did_you_mean(name, shipped)}"
    )


def find_config(name: str) -> Path:
    """Return the config at a path, or else the shipped one of that name, with or without .yaml.

    Raises:
        UsageError: There is no such file, or it is not a mapping of options.
    """
    name = inputs.path_or_copy(name, "--config", None, inputs.MAX_TEXT_BYTES)
    if (path := Path(name)).is_file():
        with errors_about(f"--config {name}"):
            _check_config(path)
        return path
    shipped = shipped_configs()
    by_stem = {path.stem: path for path in shipped.values()}
    if found := shipped.get(name) or by_stem.get(name):
        return found
    short = [path.stem for each, path in shipped.items() if "/" not in each]
    raise UsageError(
        f"--config {name}: no such file, and not one of the shipped {', '.join(short)} and "
        "sources/*, which docs/models.md lists." + did_you_mean(name, shipped)
    )


def _check_config(path: Path) -> None:
    """Refuse errors that the parser would report without naming the file, or not at all."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UsageError("holds no options by name, such as model: {n_layer: 4}")
    for group in GROUPS & set(content):
        if not isinstance(content[group], dict):
            raise UsageError(
                f"{group}: {content[group]}: is a group of options; write "
                f"{group}: {{NAME: VALUE}}, or leave it out"
            )


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Return the content of a YAML file.

    Args:
        path: Path of the file.
        loader: Loader that reads its values.

    Raises:
        UsageError: It can't be read, is not UTF-8 or not YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, loader)
    except OSError as error:
        raise UsageError(str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise UsageError(not_utf8(error)) from error
    except yaml.YAMLError as error:
        raise UsageError(f"not YAML: {' '.join(str(error).split())}") from error
    refuse_duplicates(text)
    return content
