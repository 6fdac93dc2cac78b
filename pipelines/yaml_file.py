"""From YAML to `Config`, collecting every mistake with its line."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedBase
from ruamel.yaml.error import MarkedYAMLError

from ..data.errors import ConfigError, MissingFileError, did_you_mean
from .config import Config

RECIPES = Path(__file__).parent / "recipes"
_KIND = re.compile(
    r"constrained-\w+|literal\[.*\]|int|float|str"
)  # what pydantic adds to the place of a union's member


class Source:
    """A configuration as written: its values, and where each key stands.

    Attributes:
        values: Plain dicts and lists.
        folder: What relative paths are relative to.
        name: What the run is called when the file does not say.
    """

    def __init__(self, values: dict[str, Any], where: str, folder: Path, name: str, marked: Any = None) -> None:
        self.values = values
        self.folder = folder
        self.name = name
        self._where = where
        self._marked = marked
        self._overridden: dict[tuple[str, ...], str] = {}

    def override(self, key: str, value: Any) -> None:
        """Set ``a.b.c``, making the mappings on the way."""
        *path, last = key.split(".")
        here = self.values
        for depth, part in enumerate(path):
            below = here.setdefault(part, {})
            if not isinstance(below, dict):  # a short form, such as `simulator: two_moons`
                below = _long_form(tuple(path[: depth + 1]), below, key)
                here[part] = below
            here = below
        here[last] = value
        self._overridden[(*path, last)] = f"--set {key}"

    def at(self, location: tuple[Any, ...]) -> str:
        """``file:line`` of a key, as far as it is in the file."""
        for length in range(len(location), 0, -1):
            if location[:length] in self._overridden:
                return self._overridden[location[:length]]
        line = _line(self._marked, location)
        return f"{self._where}:{line}" if line else self._where

    def problem(self, location: tuple[Any, ...], text: str) -> str:
        """One message of the form ``file:line: `key`: text``."""
        return f"{self.at(location)}: `{'.'.join(map(str, location))}`: {text}"


def read_source(given: str | Path | Mapping[str, Any]) -> Source:
    """Find and parse a configuration.

    Args:
        given: A YAML file, the name of a shipped recipe, or a mapping.

    Raises:
        MissingFileError: Neither a file nor a recipe.
        ConfigError: Not YAML, or not a mapping.
    """
    if isinstance(given, Mapping):
        return Source(copy.deepcopy(dict(given)), "configuration", Path.cwd(), str(given.get("name", "run")))
    path = _find(given)
    marked = _parse(path)
    if not isinstance(marked, Mapping):
        raise ConfigError(f"{path}: must be a mapping with `simulator:` at least; got {type(marked).__name__}")
    return Source(_plain(marked), _shown(path), path.parent.resolve(), path.stem, marked)


def validate(source: Source) -> tuple[Config, list[str]]:
    """The configuration, and all that is wrong with its form; keys that are wrong are left at their defaults.

    Raises:
        ConfigError: So much is wrong that nothing is left.
    """
    values = {"name": source.name, **source.values}
    try:
        return Config.model_validate(values), []
    except ValidationError as error:
        problems = [_message(source, item) for item in _merged(error.errors())]
        for item in error.errors():
            _drop(values, item["loc"])
    try:
        return Config.model_validate(values), problems
    except ValidationError as error:
        raise ConfigError(
            [*problems, *(m for m in (_message(source, i) for i in _merged(error.errors())) if m not in problems)]
        ) from error


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def dump(config: Config, path: Path) -> str:
    """The complete, re-runnable YAML text of a configuration."""
    import io

    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.dump(config.model_dump(mode="json", by_alias=True), stream)
    return f"# {path.name}: complete and re-runnable, written by simfer\n{stream.getvalue()}"


def override_all(source: Source, sets: Sequence[str]) -> None:
    """Set what ``--set KEY=VALUE`` gives, one after another; the values are YAML.

    Raises:
        ConfigError: No ``=``, a value that is not YAML, or a key below something that has none.
    """
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"`--set` needs KEY=VALUE; got {item!r}")
        source.override(key, parse_value(value))


def parse_value(text: str) -> Any:
    """A value as ``--set key=value`` gives it: YAML.

    Raises:
        ConfigError: Not YAML.
    """
    try:
        return _plain(YAML().load(text))
    except MarkedYAMLError as error:
        raise ConfigError(f"`--set` needs a YAML value; got {text!r}: {error.problem}") from error


def _find(given: str | Path) -> Path:
    path = Path(given)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise MissingFileError(f"no configuration file `{path}`")
    recipe = RECIPES / f"{path}.yaml"
    if not recipe.is_file():
        raise MissingFileError(f"no file and no recipe `{path}`; {did_you_mean(str(path), recipes())}")
    return recipe


def _shown(path: Path) -> str:
    return path.name if path.parent == RECIPES else str(path)


def _parse(path: Path) -> Any:
    try:
        return YAML().load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        text = (error.problem or "not YAML").splitlines()[0]
        raise ConfigError(f"{_shown(path)}:{line}: not valid YAML: {text}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{_shown(path)}: must be text in UTF-8; {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _line(marked: Any, location: tuple[Any, ...]) -> int | None:
    line = None
    for key in location:
        if not isinstance(marked, CommentedBase):
            break
        position = marked.lc.data.get(key) if marked.lc.data else None
        if position is None:
            continue  # a key that validation put in, such as `checks` for a bare list
        line = position[0] + 1
        marked = marked[key]  # type: ignore[index]
    return line


def _long_form(path: tuple[str, ...], value: Any, key: str) -> dict[str, Any]:
    if path == ("simulator",) and isinstance(value, str):
        return {"name": value}
    if path == ("diagnose",) and isinstance(value, list):
        return {"checks": value}
    raise ConfigError(f"`--set {key}`: `{'.'.join(path)}` is {value!r}, which has no keys")


def _merged(items: Sequence[Any]) -> list[dict[str, Any]]:
    """One problem per key: of a key that may be of several kinds, such as a number or ``auto``, pydantic tells one each."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for item in items:
        location = tuple(item["loc"])
        if item["type"] != "extra_forbidden" and _KIND.fullmatch(str(location[-1] if location else "")):
            location = location[:-1]
        if location in found:
            found[location]["msg"] += " or " + item["msg"].removeprefix("Input should be ")
        else:
            found[location] = {**item, "loc": location}
    return list(found.values())


def _message(source: Source, item: Any) -> str:
    location = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return source.problem(location, f"unknown key; {did_you_mean(str(location[-1]), known)}")
    if item["type"] == "missing":
        return source.problem(location, "is required")
    text = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return source.problem(location, text) if location else f"{source.at(())}: {text}"
    return source.problem(location, f"must be {text}; got {item['input']!r:.60}")


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _drop(values: Any, location: tuple[Any, ...]) -> None:
    """Remove the nearest thing at ``location`` that can be removed."""
    parents = []
    for key in location:
        if isinstance(values, dict) and key in values:
            parents.append((values, key))
            values = values[key]
    if parents:
        holder, key = parents[-1]
        del holder[key]
