"""Write the skeleton of a plugin: an installable package with a simulator, its tests and a recipe."""

from __future__ import annotations

import importlib.util
import keyword
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data import registry
from ..data.errors import ConfigError
from ..data.files import new_folder

_TEMPLATES = Path(__file__).parent / "templates" / "simulator"
_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "src/{name}/__init__.py": "__init__.py",
    "src/{name}/simulator.py": "simulator.py",
    "tests/test_{name}.py": "test_simulator.py",
    "recipes/{name}.yaml": "recipe.yaml",
}


def new_simulator(name: str, folder: Path) -> Path:
    """Write a package called ``name`` into a new folder of that name.

    Args:
        name: Of the package, of its entry point and of the recipe: lower case, an identifier.
        folder: Where the new folder is made.

    Returns:
        The new folder.

    Raises:
        ConfigError: A name that cannot be, is taken, or a folder that is there already.
    """
    _check(name)
    target = folder / name
    if target.exists():
        raise ConfigError(f"{target} is there already, and nothing is overwritten: give another name or `--folder`")
    kind = "".join(part.capitalize() for part in name.split("_"))
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False
    )
    with new_folder(target) as made:
        for path, template in _FILES.items():
            file = made / path.format(name=name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(templates.get_template(f"{template}.j2").render(name=name, kind=kind), encoding="utf-8")
    return target


def _check(name: str) -> None:
    plain = name.isascii() and name.isidentifier() and name == name.lower() and not name.startswith("_")
    if not plain or keyword.iskeyword(name):
        raise ConfigError(f"`NAME` must be a lower-case Python identifier, such as `my_model`; got {name!r}")
    if name in registry.names("simulators"):
        raise ConfigError(f"`NAME`: there is a simulator `{name}` already: choose another")
    if importlib.util.find_spec(name) is not None:
        raise ConfigError(f"`NAME`: there is a module `{name}` already, which the new one would hide: choose another")
