"""Text with named parameters, ``--rate {beta:.17g}``: checked once, rendered for every row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from string import Formatter
from typing import Any

from ..data.errors import SimulatorError, did_you_mean


class Template:
    """Text with ``{name}`` or ``{name:format}``, as Python formats strings; ``{{`` and ``}}`` are braces.

    Args:
        text: As the user wrote it.
        known: Names that may stand in it.
        what: How error messages call it.

    Raises:
        SimulatorError: Braces that do not match, or a name that is not known.
    """

    def __init__(self, text: str, known: Collection[str], what: str) -> None:
        self.names = {name for name in _fields(text, what) if name is not None}
        for name in sorted(self.names):
            if name not in known:
                raise SimulatorError(
                    f"`{what}` has `{{{name}}}`, which is no name it can have; {did_you_mean(name, known)} "
                    "(a brace of the text itself is written twice)"
                )
        self._text = text
        self._what = what

    def render(self, values: Mapping[str, Any]) -> str:
        """The text with its values.

        Raises:
            SimulatorError: A format that does not fit its value, such as ``{beta:d}`` for a real number.
        """
        try:
            return self._text.format_map(values)
        except (ValueError, TypeError, KeyError) as error:
            raise SimulatorError(
                f"`{self._what}` cannot be written: {error}; parameters are real numbers: `:.0f` writes a whole one"
            ) from error


def _fields(text: str, what: str) -> list[str | None]:
    try:
        return [name for _, name, _, _ in Formatter().parse(text)]
    except ValueError as error:
        raise SimulatorError(
            f"`{what}` must have matching braces, those of the text itself written twice; got {text!r:.80}: {error}"
        ) from error
