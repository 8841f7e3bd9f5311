"""A monitor as a callback of Hugging Face's Trainer.

The Trainer hands its callbacks neither batch nor loss, so the monitor measures on a probe of its own. Numbers go to the
monitor's own writer: what a callback adds to the Trainer's logs never reaches the reporters that come before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frechet.analyze import Monitor

if TYPE_CHECKING:
    from transformers import TrainerCallback


def for_transformers(monitor: Monitor) -> TrainerCallback:
    """Return a callback for `transformers.Trainer` that calls a monitor after each optimizer step.

    The monitor's state is written into its folder with every checkpoint, and at the end.

    Args:
        monitor: the monitor. Its objective may be made before the Trainer moves the model to another device.

    Example:
        >>> import tempfile, torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import Monitor
        >>> from frechet.interop import for_transformers
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
        >>> callback = for_transformers(Monitor(objective, share=0.01, seed=0))  # Trainer(..., callbacks=[callback])
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError("for_transformers: needs the package transformers, which is not installed") from error

    class MonitorCallback(TrainerCallback):
        """Calls `monitor.step` at the end of each step."""

        def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            monitor.step(state.global_step, optimizer)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            monitor.save()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            monitor.save()

    return MonitorCallback()
