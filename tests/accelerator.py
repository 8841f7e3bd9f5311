"""The emulated device of accelerator.cpp, compiled on first use; for a process of its own, since it stays there."""

import types
from pathlib import Path
from typing import Any

import torch
from torch.utils.cpp_extension import load

NAME = "emulated"


def install() -> Any:
    """Make the device `NAME` exist; the module returned has `readings()`, the times that the host read its values."""
    load("accelerator", [str(Path(__file__).with_suffix(".cpp"))], extra_cflags=["-O1"], is_python_module=False)
    torch.ops.accelerator.install()
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(NAME)
    module.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        get_amp_supported_dtype=lambda: [torch.bfloat16],
        get_rng_state=lambda device=0: torch.get_rng_state(),
        set_rng_state=lambda state, device=0: torch.set_rng_state(state),
    )
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    # parameters moved to another kind of device would be made anew, and tied ones come apart
    torch.__future__.set_swap_module_params_on_conversion(True)
    return torch.ops.accelerator
