"""Parts of a long computation, kept in a folder while the rest is made, so that it goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import write_arrays
from .stopping import stop_if_asked
from .variables import Arrays


def kept(file: Path | None, make: Callable[[], Arrays]) -> Arrays:
    """Arrays that were kept before, or else made and kept now.

    Args:
        file: Where; None keeps nothing.
        make: Makes them.

    Raises:
        KeyboardInterrupt: They are kept, and this process is asked to stop.
    """
    if file is None:
        return make()
    if not file.is_file():
        write_arrays(file, make())
        stop_if_asked()
    with np.load(file) as arrays:
        return dict(arrays)
