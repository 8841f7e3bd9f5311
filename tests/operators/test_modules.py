"""Every module of `module_cases` through every product, by both routes, against dense double backward in float64."""

from types import SimpleNamespace

import pytest
import torch

from frechet.errors import NotDifferentiable
from frechet.operators._operator import Adjoint
from frechet.operators.derivatives._gauss_newton import fisher, gauss_newton
from frechet.operators.derivatives._hessian import hessian
from frechet.operators.derivatives._jacobian import jacobian
from frechet.operators.derivatives._modes import lacks_forward
from frechet.recording import linearize
from laws import block, close, is_linear, keeps_no_graph, leaves_its_input, repeats_itself
from module_cases import MODULES, checkpointed, functional_losses
from objective_cases import gauss_newton_of, hessian_of, jacobian_of, prepared

named = pytest.mark.parametrize("make", MODULES, ids=lambda m: m.__name__)
LAWS = (is_linear, keeps_no_graph, leaves_its_input, repeats_itself)  # those that a module could break


def routes(make, without=()):
    lacking = make in without or lacks_forward(prepared(make)[0].objective.model)
    return ["reverse"] if lacking else ["reverse", "forward"]


def obeys(A, dense):
    V, U = block(A.domain, 2, 1), block(A.codomain, 2, 2)
    close(A @ V, dense @ V)
    close(Adjoint(A) @ U, dense.T @ U)
    for law in LAWS if A.route == "reverse" else LAWS[:1]:
        law(A, SimpleNamespace(dense=dense))


@named
def test_hessian(make):
    for route in routes(make, without=(functional_losses,)):
        obeys(hessian(prepared(make)[0].objective, route=route), hessian_of(make))


@named
def test_gauss_newton_and_fisher(make):
    objective = prepared(make)[0].objective
    for route in routes(make, without=(checkpointed,)):
        obeys(gauss_newton(objective, route=route), gauss_newton_of(make))
        if make is not functional_losses:  # no likelihood
            F = fisher(objective, route=route)
            V = block(F.domain, 2, 1)
            close(F @ V, gauss_newton_of(make) @ V)


@named
def test_jacobian(make):
    for route in routes(make):
        obeys(jacobian(prepared(make)[0].objective, route=route), jacobian_of(make))


@named
def test_recorded_with_nothing_kept_they_are_the_same_maps(make):
    objective = prepared(make)[0].objective
    draws = objective.dropout_seed is not None
    for route in routes(make, without=(functional_losses,)):
        for A, dense in ((hessian, hessian_of), (gauss_newton, gauss_newton_of), (jacobian, jacobian_of)):
            if make is checkpointed and route == "forward" and A is not hessian:
                continue
            L = linearize(A(objective, route=route), memory=0)
            V = block(L.domain, 2, 1)
            close(L @ V, dense(make) @ V)
            assert torch.equal(L @ V, L @ V)
            assert (L.batches, L.plain > 0) == (0, draws)
            assert not draws or "draws random numbers" in L.message


@named
def test_linearized_they_are_the_same_maps(make):
    objective = prepared(make)[0].objective
    for route in routes(make, without=(functional_losses,)):
        H = linearize(hessian(objective, route=route))
        V = block(H.domain, 2, 1)
        close(H @ V, hessian_of(make) @ V)
        assert torch.equal(H @ V, H @ V)
    G, J = linearize(gauss_newton(objective, route="reverse")), linearize(jacobian(objective, route="reverse"))
    V, U = block(J.domain, 2, 1), block(J.codomain, 2, 2)
    close(G @ V, gauss_newton_of(make) @ V)
    close(J @ V, jacobian_of(make) @ V)
    close(J.T @ U, jacobian_of(make).T @ U)


@named
def test_the_model_is_left_as_it_was_and_passes_the_check(make):
    objective = make().objective
    model = objective.model
    before = {name: t.clone() for name, t in model.state_dict().items()}
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    H = hessian(objective)
    V = block(H.domain, 2, 1)
    assert torch.equal(H @ V, H @ V)
    assert objective.check().value == float(objective.value())
    gauss_newton(objective, route="reverse") @ V
    objective.gradient()
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in after.items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_what_the_forward_route_cannot_do_it_says():
    losses = prepared(functional_losses)[0].objective
    with pytest.raises(NotDifferentiable, match=r"hessian: .*huber_loss_backward.* try the other route="):
        hessian(losses, route="forward").dense()
    with pytest.raises(NotDifferentiable, match=r"gauss_newton: .*activation checkpoints.* use route='reverse'"):
        gauss_newton(prepared(checkpointed)[0].objective, route="forward").dense()
