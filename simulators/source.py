"""What a piece of code does, told from how it is written: comments, docstrings and blank lines do not count.

A simulator is known by the whole file that defines it, since what it calls decides too; a mended comment must not cost a
campaign.
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from pathlib import Path
from typing import Any

from ..data.files import fingerprint

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def source_hash(thing: Any) -> str:
    """Of the code of the file that a class or function is defined in; of its name where there is no file."""
    try:
        path = inspect.getsourcefile(inspect.unwrap(thing))
        text = code(Path(path).read_text(encoding="utf-8")) if path else ""
    except (OSError, TypeError):  # typed into an interactive session, or built in
        text = repr(getattr(thing, "__qualname__", thing))
    return fingerprint(text)[:16]


def code(text: str) -> str:
    """The lines of a Python file without comments, docstrings and blank lines; as they are where it is none."""
    try:
        tree, tokens = ast.parse(text), list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (SyntaxError, tokenize.TokenError):
        return text
    lines = text.splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            line, column = token.start
            lines[line - 1] = lines[line - 1][:column]
    for first, last in _docstrings(tree):
        lines[first - 1 : last] = [""] * (last - first + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _docstrings(tree: ast.Module) -> list[tuple[int, int]]:
    """First and last line of each; one that shares its lines with code is left."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            string, line = node.body[0], getattr(node, "lineno", 0)
            last = string.end_lineno or string.lineno
            alone = len(node.body) == 1 or node.body[1].lineno > last
            if string.lineno > line and alone:
                found.append((string.lineno, last))
    return found
