"""Reduced models: exact where the trajectory stays on the manifold, with the defect where it does not."""

import pytest
import torch

from frechet.physics import galerkin_velocity, march

F64 = torch.float64
N = 64
X = torch.arange(N, dtype=F64) * (2 * torch.pi / N)
K = torch.fft.rfftfreq(N, 1 / N, dtype=F64)


def slope(u, times=1):
    return torch.fft.irfft((1j * K) ** times * torch.fft.rfft(u), N)


def wave(z):
    return z[0] * torch.sin(X - z[1])


FIELDS = {
    "transport": (lambda u: -3 * slope(u) - 0.1 * u, lambda z: torch.stack([-0.1 * z[0], 3 + 0 * z[1]])),
    "heat": (lambda u: 0.2 * slope(u, 2), lambda z: torch.stack([-0.2 * z[0], 0 * z[1]])),
    "both": (lambda u: 0.2 * slope(u, 2) - slope(u), lambda z: torch.stack([-0.2 * z[0], 1 + 0 * z[1]])),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_wave_that_stays_a_wave_has_the_exact_velocity(name, weighted):
    field, right = FIELDS[name]
    weights = 1 + 0.3 * torch.cos(X) if weighted else None
    for z in torch.tensor([[2.0, 0.5], [0.1, -3.0], [1.0, 10.0]], dtype=F64):
        found = galerkin_velocity(wave, field, z, weights=weights)
        torch.testing.assert_close(found.velocity, right(z), rtol=1e-12, atol=1e-12)
        assert float(found.defect) <= 1e-12


def test_the_latents_march_along_the_solution():
    def rk4(z, h):
        def v(z):
            return galerkin_velocity(wave, FIELDS["both"][0], z).velocity

        a = v(z)
        b = v(z + h / 2 * a)
        c = v(z + h / 2 * b)
        return z + h / 6 * (a + 2 * b + 2 * c + v(z + h * c))

    z0, h = torch.tensor([1.5, 0.2], dtype=F64), torch.full((20,), 0.05, dtype=F64)
    z = march(rk4, z0, h, checkpoints=4).final
    torch.testing.assert_close(
        z, torch.stack([1.5 * torch.tensor(-0.2, dtype=F64).exp(), z0[1] + 1]), rtol=1e-8, atol=0
    )


def test_the_defect_is_the_part_outside_of_the_tangent_space():
    field = lambda u: -u * slope(u)  # noqa: E731  Burgers: the second harmonic is not in the manifold
    z = torch.tensor([1.3, 0.4], dtype=F64)
    found = galerkin_velocity(wave, field, z)
    J = torch.func.jacrev(wave)(z)
    n = field(wave(z))
    left = n - J @ torch.linalg.lstsq(J, n[:, None]).solution[:, 0]
    assert float(found.defect) == pytest.approx(float(left.norm() / n.norm()), rel=1e-12)
    assert float(found.defect) > 0.99


def test_it_is_differentiable_in_the_latents_and_in_what_the_decoder_reads():
    def velocity(z, width):
        gauss = lambda z: z[0] * torch.exp(-((X - z[1]) ** 2) * width)  # noqa: E731
        found = galerkin_velocity(gauss, lambda u: -u * slope(u) - u, z)
        return found.velocity.sum() + found.defect

    z, width = torch.tensor([1.0, 3.0], dtype=F64), torch.tensor(2.0, dtype=F64)
    assert torch.autograd.gradcheck(velocity, (z.clone().requires_grad_(), width.clone().requires_grad_()))
    forward = torch.func.jacfwd(velocity)(z, width)
    torch.testing.assert_close(forward, torch.func.jacrev(velocity)(z, width))


def test_nothing_that_moves_has_no_defect():
    found = galerkin_velocity(wave, lambda u: 0 * u, torch.tensor([1.0, 0.0], dtype=F64))
    assert found.velocity.tolist() == [0.0, 0.0]
    assert float(found.defect) == 0.0


def test_a_decoder_without_rank_and_other_sizes_are_refused():
    z = torch.tensor([0.0, 0.5], dtype=F64)  # no amplitude: the phase does nothing
    with pytest.raises(ValueError, match="the Jacobian of decoder must have rank 2 at z, got 1"):
        galerkin_velocity(wave, slope, z)
    one = torch.ones(2, dtype=F64)
    with pytest.raises(ValueError, match=r"field must return a state \(64,\), got \(63,\)"):
        galerkin_velocity(wave, lambda u: u[1:], one)
    with pytest.raises(ValueError, match=r"z must be a vector \(r,\)"):
        galerkin_velocity(wave, slope, one[None])
    with pytest.raises(ValueError, match="a state must have at least the 2 entries of z, got 1"):
        galerkin_velocity(lambda z: z[:1], lambda u: u, one)
    with pytest.raises(ValueError, match=r"weights must have the shape \(64,\)"):
        galerkin_velocity(wave, slope, one, weights=torch.ones(3, dtype=F64))
