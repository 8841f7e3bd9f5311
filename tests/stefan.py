"""The inverse Stefan problem: heat in 0 < x < s(t) whose end s moves, on the fixed interval y = x / s.

    v_t = a v_yy / s^2 + y s' v_y / s - f,   a v_y / s = g at y = 0,   a v_y / s = chi - s' at y = 1

Implicit Euler in time, central differences with ghost nodes in space.
"""

import torch

from frechet.physics import march

F64 = torch.float64


def implicit_euler(nodes, dt, a=1.0, chi=0.0):
    h, y = 1 / nodes, torch.linspace(0, 1, nodes + 1, dtype=F64)
    inner = torch.arange(1, nodes)

    def step(v, u):
        s, slope = u["s"], (u["s"] - u["before"]) / dt
        alpha, beta = a / (s * h) ** 2, y * slope / s / (2 * h)
        low, up = -(alpha - beta), -(alpha + beta)
        A = torch.diag(torch.ones_like(y) * (1 / dt + 2 * alpha))
        A = A.index_put((inner, inner - 1), low[inner]).index_put((inner, inner + 1), up[inner])
        ends = torch.tensor([0, nodes]), torch.tensor([1, nodes - 1])
        A = A.index_put(ends, torch.stack([up[0] + low[0], low[-1] + up[-1]]))
        flux = torch.stack([-2 * h * s * u["g"] / a, 2 * h * s * (chi - slope) / a])
        ghosts = torch.zeros_like(y).index_put((ends[0],), torch.stack([low[0], up[-1]]) * flux)
        return torch.linalg.solve(A, v / dt - u["f"] - ghosts)

    return step


def stefan_cost(nodes=24, M=40, T=1.0, mu=0.0, end=1.3, checkpoints=None):
    """J(s, g, f): misfits of the temperature at the end time, of that at the free boundary, and of the end of it."""
    dt, h, y = T / M, 1 / nodes, torch.linspace(0, 1, nodes + 1, dtype=F64)
    weights = torch.full_like(y, h)
    weights[0] = weights[-1] = h / 2
    step = implicit_euler(nodes, dt)

    def J(s, g, f):
        run = march(
            step,
            1 - y * s[0],
            {"s": s[1:], "before": s[:-1], "g": g, "f": f},
            output=lambda v: v[-1],
            checkpoints=checkpoints,
        )
        final = s[-1] * (weights * (run.final - (torch.cos(y * s[-1]) - 0.3)).square()).sum()
        return final + dt * (run.outputs[1:] - mu).square().sum() + (s[-1] - end) ** 2

    return J


def stefan_point(M=40):
    t = torch.linspace(0, 1, M + 1, dtype=F64)
    return 1 + 0.4 * t + 0.1 * torch.sin(3 * t), -1 + 0.3 * torch.sin(5 * t[1:]), 0.2 * torch.cos(4 * t[1:])
