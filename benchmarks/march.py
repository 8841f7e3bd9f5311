"""Gradients through time steps, beside torchdiffeq, and what checkpoints cost.

    python benchmarks/march.py [--steps 100 400] [--size 2000] [--rounds 3]

Part 1, van der Pol's oscillator with mu = 1.3 from (2, 0) to t = 6, loss y_1(6)^2: the gradient in the start and in mu.
Two errors are printed. *To the equation*: the relative distance from the gradient of the exact flow, by the variational
equations to 1e-12. *To its own values*: the distance from central differences of the loss that the method itself
computes, which is what a line search sees. torchdiffeq's `odeint_adjoint` integrates a second equation backwards,
`odeint` backpropagates through the solver.

Part 2, a chain of `size` sites, `steps` steps of Runge and Kutta: a gradient with all graphs kept and with sqrt(steps)
checkpoints. Bytes are the peak of what torch allocates above what was there, from its profiler; seconds are processor
seconds of one thread, medians of interleaved rounds. Writes results/march.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import scipy.integrate
import timing
import torch
from hypergradient import peak
from torch import Tensor

from frechet.physics import march

F64 = torch.float64
MU, END = 1.3, 6.0
POINT = torch.tensor([2.0, 0.0, MU], dtype=F64)  # the start, and mu
Loss = Callable[[Tensor], Tensor]


def field(y: Tensor, mu: Tensor) -> Tensor:
    return torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def runge_kutta(f: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def step(y: Tensor, h: Tensor, p: Tensor) -> Tensor:
        a = f(y, p)
        b = f(y + h / 2 * a, p)
        c = f(y + h / 2 * b, p)
        return y + h / 6 * (a + 2 * b + 2 * c + f(y + h * c, p))

    return step


def marched(M: int) -> Loss:
    h = torch.full((M,), END / M, dtype=F64)
    return lambda z: march(runge_kutta(field), z[:2], h, parameters=z[2], output=lambda y: y[0]).final[0] ** 2


class Field(torch.nn.Module):
    """The right side as torchdiffeq takes it."""

    def __init__(self, mu: Tensor) -> None:
        super().__init__()
        self.mu = mu

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return field(y, self.mu)


def integrated(adjoint: bool, rtol: float) -> Loss:
    import torchdiffeq

    def loss(z: Tensor) -> Tensor:
        times, options = torch.tensor([0.0, END], dtype=F64), {"rtol": rtol, "atol": rtol / 100}
        if adjoint:
            mu = z[2]
            y = torchdiffeq.odeint_adjoint(Field(mu), z[:2], times, adjoint_params=(mu,), **options)
        else:
            y = torchdiffeq.odeint(Field(z[2]), z[:2], times, **options)
        return y[-1][0] ** 2

    return loss


def exact() -> Tensor:
    """The gradient of the flow, by the variational equations."""

    def both(t: float, w):
        y, S = torch.tensor(w[:2]), torch.tensor(w[2:]).view(2, 3)
        J = torch.func.jacrev(field, argnums=(0, 1))(y, torch.tensor(MU, dtype=F64))
        dS = J[0] @ S
        dS[:, 2] += J[1]
        return torch.cat([field(y, torch.tensor(MU, dtype=F64)), dS.reshape(-1)]).numpy()

    w = torch.cat([POINT[:2], torch.eye(2, 3, dtype=F64).reshape(-1)]).numpy()
    end = scipy.integrate.solve_ivp(both, (0, END), w, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
    return 2 * float(end[0]) * torch.tensor(end[2:5])


def gradient(loss: Loss) -> Tensor:
    z = POINT.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z)[0]


def differences(loss: Loss, eps: float = 1e-6) -> Tensor:
    found = []
    for e in torch.eye(3, dtype=F64):
        with torch.no_grad():
            found.append((loss(POINT + eps * e) - loss(POINT - eps * e)) / (2 * eps))
    return torch.stack(found)


def second(loss: Loss) -> str:
    """Whether a Hessian comes."""
    try:
        H = torch.func.hessian(loss)(POINT)
    except Exception as error:  # whatever the other library raises is the result
        return type(error).__name__
    return f"symmetric to {float((H - H.T).abs().max() / H.abs().max()):.0e}"


def gradients() -> list[dict]:
    losses: dict[str, Loss] = {f"march, {M} steps": marched(M) for M in (150, 600)}
    for rtol in (1e-4, 1e-6, 1e-8):
        losses |= {f"{name}, rtol {rtol:g}": integrated(adjoint, rtol)
                   for name, adjoint in (("odeint_adjoint", True), ("odeint", False))}  # fmt: skip
    right, rows = exact(), []
    print(f"{'':28s} to the equation  to its own values  Hessian")
    for name, loss in losses.items():
        try:
            g = gradient(loss)
        except AssertionError as error:
            print(f"{name:28s} {type(error).__name__}: {error}")
            rows.append({"way": name, "error": None, "told": str(error)})
            continue
        error, own = (float((g - r).norm() / right.norm()) for r in (right, differences(loss)))
        told = second(loss)
        print(f"{name:28s} {error:15.1e}  {own:17.1e}  {told}")
        rows.append({"way": name, "error": error, "own": own, "hessian": told})
    return rows


def chain(y: Tensor, p: Tensor) -> Tensor:
    return p * (y.roll(1) - 2 * y + y.roll(-1)) + torch.sin(y)


def checkpoints(counts: list[int], size: int, rounds: int) -> list[dict]:
    rows = []
    for M in counts:
        y0, h = torch.linspace(0, 1, size, dtype=F64), torch.full((M,), 0.01, dtype=F64)

        def work(given: int | None, y0: Tensor = y0, h: Tensor = h) -> Tensor:
            y, p = y0.clone().requires_grad_(), torch.tensor(0.5, dtype=F64, requires_grad=True)
            run = march(runge_kutta(chain), y, h, parameters=p, output=lambda y: y[0], checkpoints=given)
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(run.final.square().sum(), (y, p))])

        found, times, bytes_of = {}, {"kept": [], "checkpoints": []}, {}
        ways = {"kept": 0, "checkpoints": None}
        for name, given in ways.items():
            found[name], bytes_of[name] = work(given), peak(lambda given=given: work(given))
        for _ in range(rounds):
            for name, given in ways.items():
                begun = time.process_time()
                work(given)
                times[name].append(time.process_time() - begun)
        same = torch.equal(found["kept"], found["checkpoints"])
        ratio = statistics.median(times["checkpoints"]) / statistics.median(times["kept"])
        kept, less = (bytes_of[name] / 2**20 for name in ways)
        print(f"{M:6d} steps: {kept:8.1f} MiB kept, {less:6.1f} MiB with checkpoints, {ratio:.2f} times as long, "
              f"{'the same bits' if same else 'OTHER BITS'}")  # fmt: skip
        rows.append({"steps": M, "kept": kept, "checkpoints": less, "time": ratio, "same": same})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 400])
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    timing.restart(1)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the other library
    rows = gradients()
    print()
    memory = checkpoints(a.steps, a.size, a.rounds)
    timing.write("march", timing.record(vars(a), gradients=rows, checkpoints=memory))


if __name__ == "__main__":
    main()
