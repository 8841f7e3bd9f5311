"""A monitor as a callback of Lightning's Trainer."""

from __future__ import annotations

import importlib
from typing import Any

from frechet.analyze import Monitor


def for_lightning(monitor: Monitor, *, optimizer: int = 0) -> Any:
    """Return a callback for Lightning's Trainer that calls a monitor after each optimizer step.

    The monitor's state goes into Lightning's checkpoints, so a run that is resumed from one goes on with its budget and
    its warm start. Batches that only accumulate gradients, and the sanity check, are passed over.

    Args:
        monitor: the monitor.
        optimizer: which of the module's optimizers moves the objective's parameters.

    Example:
        >>> import torch
        >>> from frechet import Objective, squared_error
        >>> from frechet.analyze import Monitor
        >>> from frechet.interop import for_lightning
        >>> model = torch.nn.Linear(2, 1)
        >>> objective = Objective(model, squared_error(), [(torch.eye(2), torch.zeros(2, 1))])
        >>> monitor = Monitor(objective, share=0.01, seed=0)
        >>> # Trainer(..., callbacks=[for_lightning(monitor)])
    """
    base = _callback_class()

    class MonitorCallback(base):
        """Calls `monitor.step` after each batch that has moved the parameters."""

        def __init__(self) -> None:
            self.last = 0

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.last = trainer.global_step

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.sanity_checking or trainer.global_step == self.last:
                return
            self.last = trainer.global_step
            monitor.step(trainer.global_step, trainer.optimizers[optimizer])

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            monitor.save()

        def state_dict(self) -> dict[str, Any]:
            return monitor.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            monitor.load_state_dict(state_dict)

    return MonitorCallback()


def _callback_class() -> Any:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(f"{package}.callbacks").Callback
        except ImportError:
            continue
    raise ImportError("for_lightning: needs the package lightning or pytorch_lightning, and neither is installed")
