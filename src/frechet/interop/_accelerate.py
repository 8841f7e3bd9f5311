"""A monitor in a loop that Accelerate runs: which steps were optimizer steps, and its state in the checkpoints."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from frechet.analyze import Monitor, Reading


class AcceleratedMonitor:
    """A monitor that counts the optimizer steps of an `Accelerator`; `for_accelerate` makes it."""

    def __init__(self, monitor: Monitor, accelerator: Any) -> None:
        self.monitor, self.accelerator, self.steps = monitor, accelerator, 0

    def step(self, optimizer: Optimizer) -> Reading | None:
        """Return a reading where one is due. Call it where the loop calls ``optimizer.step()``, and after it.

        Args:
            optimizer: the prepared optimizer. A call in which gradients only accumulate, and a step that the scaler
                skips, are not counted.
        """
        if not self.accelerator.sync_gradients or getattr(optimizer, "step_was_skipped", False):
            return None
        self.steps += 1
        return self.monitor.step(self.steps, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, and the count."""
        return {"steps": self.steps, "monitor": self.monitor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.steps = int(state_dict["steps"])
        self.monitor.load_state_dict(state_dict["monitor"])


def for_accelerate(monitor: Monitor, accelerator: Any) -> AcceleratedMonitor:
    """Return a monitor for a loop of Accelerate; its state is registered with the accelerator's checkpoints.

    Args:
        monitor: the monitor.
        accelerator: the `accelerate.Accelerator`.

    Returns:
        An `AcceleratedMonitor`: call ``watch.step(optimizer)`` after each ``optimizer.step()`` of the loop.
    """
    made = AcceleratedMonitor(monitor, accelerator)
    accelerator.register_for_checkpointing(made)
    return made
