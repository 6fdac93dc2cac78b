"""What tells two versions of a simulator's file apart: what it does, not how it is explained."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from simfer.simulators.source import code, source_hash

PLAIN = '''\
"""A law."""

import numpy as np


class Law:
    """Of a thing."""

    gain = "# 2"  # per metre

    def simulate(self, theta, rng):
        """One row each.

        Long.
        """
        return {"x": theta * 2}


def empty():
    """Nothing."""
'''


def test_comments_docstrings_and_blank_lines_do_not_count() -> None:
    other = PLAIN.replace("A law.", "Another\nstory.").replace("  # per metre", "").replace("\n\n\n", "\n\n# why\n\n")
    other = other.replace("        Long.\n", "        Longer\n        still.\n").replace("Of a thing.", "Of things.")
    assert other != PLAIN
    assert code(other) == code(PLAIN)


@pytest.mark.parametrize(
    ("old", "new"), [("* 2", "* 3"), ('"# 2"', '"# 3"'), ('{"x"', '{"y"'), ("        return", "    return")]
)
def test_code_counts(old: str, new: str) -> None:
    assert code(PLAIN.replace(old, new)) != code(PLAIN)


def test_a_string_beside_code_is_no_comment() -> None:
    assert code('def f(): "a"; return 1') != code('def f(): "b"; return 2')
    assert code('def f():\n    "a"; g()') == 'def f():\n    "a"; g()'


def test_what_is_not_python_counts_as_it_is() -> None:
    assert code("not: python # at all") == "not: python # at all"


def test_a_class_is_known_by_the_code_of_its_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(text: str) -> str:
        path = tmp_path / f"law_{abs(hash(text))}.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("law", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "law", module)
        spec.loader.exec_module(module)
        return source_hash(module.Law)

    assert hash_of(PLAIN) == hash_of(PLAIN + "\n# the end\n")
    assert hash_of(PLAIN) != hash_of(PLAIN.replace("def empty", "def nothing"))
