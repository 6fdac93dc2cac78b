"""Where a loader stands: the epoch, and how many of its batches were consumed."""

from __future__ import annotations

from typing import Any


class Position:
    """Kept by Lightning in every checkpoint, so that an interrupted run continues with the very next batch."""

    epoch = 0
    consumed = 0

    def begin(self, batches: int) -> None:
        """Go to the next epoch if this one's ``batches`` are all consumed."""
        if self.consumed >= batches:
            self.epoch, self.consumed = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; batches consumed count only if it is the one they were consumed in."""
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]
