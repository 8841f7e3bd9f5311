"""Products and algorithms on other devices: on an emulated one wherever a compiler is, on CUDA where that is."""

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
LIMIT = 900  # seconds: the first run compiles the emulated device
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulated device needs g++")
on_devices = pytest.mark.parametrize(
    "device",
    [
        pytest.param("emulated", marks=[needs_compiler, pytest.mark.timeout(LIMIT)]),
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.timeout(LIMIT)]),
    ],
)


@functools.cache
def answers(device: str) -> dict[str, dict]:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # ninja is beside the interpreter
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent / "src"), str(HERE)]),
        "PYTHONDONTWRITEBYTECODE": "",
        "TORCH_EXTENSIONS_DIR": str(HERE.parent / ".pytest_cache" / "extensions"),
    }
    command = [sys.executable, str(HERE / "device_worker.py"), device]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr[-3000:]
    return json.loads(lines[0])


@on_devices
def test_all_products_and_algorithms_give_the_processors_numbers_there(device):
    found = answers(device)
    expected = {"cells: hessian, forward", "two devices"}
    wrong = {
        name: answer
        for name, answer in found.items()
        if name not in expected and ("failure" in answer or answer["difference"] > 1e-9 or not answer["there"])
    }
    assert not wrong
    assert len(found) > 500


@on_devices
def test_tensors_of_two_devices_are_refused(device):
    assert "same device" in answers(device)["two devices"]["failure"]


@on_devices
def test_cells_that_are_one_operation_on_devices_have_no_forward_mode_there(device):
    assert answers(device)["cells: hessian, forward"]["failure"] == (
        "ValueError: hessian: route='forward' cannot go through module 'inner.0' (GRUCell); use route='reverse'"
    )


@needs_compiler
@pytest.mark.timeout(LIMIT)
def test_the_host_waits_once_for_a_product_and_a_few_times_for_an_iteration():
    found = answers("emulated")
    # once more with A and with A', each asked whether it is finite
    assert found["tanh_mlp: kept hessian, twice"]["readings"] - found["tanh_mlp: kept hessian"]["readings"] == 2
    assert found["cg"]["readings"] <= 2 * found["cg"]["iterations"] + 5
    assert found["minres"]["readings"] <= 4 * found["minres"]["iterations"] + 5
    assert found["lsmr"]["readings"] <= 5 * found["lsmr"]["iterations"] + 5
