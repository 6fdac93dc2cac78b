from __future__ import annotations

from pathlib import Path

import pytest

from simfer.data import registry
from simfer.data.errors import MissingFileError, UnknownNameError


def test_unknown_name_lists_the_known_nearest_first() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown simulator `two_moon`; did you mean `two_moons`\\? Known: two_moons, "
    ):
        registry.resolve("simulators", "two_moon")


def test_objects_come_from_files_and_modules(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    assert registry.resolve("simulators", "mine.py:Mine", tmp_path).__name__ == "Mine"
    assert registry.resolve("simulators", "json:loads", tmp_path)("[1]") == [1]


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("mine.py:Mime", UnknownNameError, "has no `Mime`; did you mean `Mine`"),
        ("other.py:Mine", MissingFileError, "no file"),
        ("no_such_module:Mine", UnknownNameError, "no module `no_such_module`"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, name: str, error: type[Exception], match: str) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    with pytest.raises(error, match=match):
        registry.resolve("simulators", name, tmp_path)


def test_an_error_inside_a_users_file_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        registry.resolve("simulators", "broken.py:Mine", tmp_path)
