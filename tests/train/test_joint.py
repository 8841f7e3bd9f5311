import pytest
import torch

from frechet.errors import NonFinite, NotDifferentiable
from frechet.train import joint_backward, min_norm, upgrad


def task():
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh())
    heads = [torch.nn.Linear(6, 2), torch.nn.Linear(6, 1)]
    model = torch.nn.ModuleList([trunk, *heads]).double()
    x = torch.randn(8, 4, dtype=torch.float64)

    def losses():
        h = trunk(x)
        return [heads[0](h).square().mean(), (heads[1](h) - 1).abs().mean(), 1e3 * (heads[1](h) + h[:, :1]).mean()]

    return model, losses


def jacobian(losses, parameters):
    out = []
    for loss in losses:
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        out.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, found, strict=True)]
            )
        )
    return torch.stack(out)


@pytest.mark.parametrize("memory", [1, 700, 1 << 30])
@pytest.mark.parametrize("aggregate", [upgrad, min_norm])
def test_the_gradient_is_the_weighted_sum_and_memory_does_not_change_it(memory, aggregate):
    model, losses = task()
    parameters = list(model.parameters())
    J = jacobian(losses(), parameters)
    joint = joint_backward(losses(), parameters, aggregate=aggregate, memory=memory)
    found = torch.cat([p.grad.reshape(-1) for p in parameters])
    torch.testing.assert_close(joint.gram, J @ J.T)
    torch.testing.assert_close(found, J.T @ aggregate(J @ J.T))
    torch.testing.assert_close(joint.cosines, (J @ found) / J.norm(dim=1) / found.norm())
    assert joint.passes == (3 if memory == 1 << 30 else joint.passes)


def test_gradients_add_up_as_those_of_backward_do():
    model, losses = task()
    parameters = list(model.parameters())
    joint_backward(losses(), parameters)
    once = [p.grad.clone() for p in parameters]
    joint_backward(losses(), parameters)
    for p, g in zip(parameters, once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


def test_the_graph_is_kept_where_that_is_asked_for():
    model, losses = task()
    now = losses()
    joint_backward(now, model.parameters(), retain_graph=True)
    joint_backward(now, model.parameters())


def test_training_with_any_optimizer_lowers_all_losses():
    model, losses = task()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    before = [float(loss.detach()) for loss in losses()]
    for _ in range(20):
        optimizer.zero_grad()
        joint_backward(losses(), model.parameters())
        optimizer.step()
    assert all(float(b.detach()) < a for a, b in zip(before, losses(), strict=True))


def test_a_vector_of_losses_and_parameters_that_none_reaches():
    x, idle = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    joint = joint_backward(x * torch.tensor([1.0, 2.0, 3.0]), [x, idle])
    assert joint.weights.shape == (3,)
    assert x.grad.tolist() == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert idle.grad is None or not idle.grad.any()


def test_wrong_arguments_are_named():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"losses must be scalars in a list or a tensor \(m,\), got \(2, 2\)"):
        joint_backward(torch.ones(2, 2), [x])
    with pytest.raises(ValueError, match="losses must be scalars in a list"):
        joint_backward([x], [x])
    with pytest.raises(ValueError, match="parameters must have at least one tensor, got none"):
        joint_backward([x.sum()], [])
    with pytest.raises(ValueError, match=r"leaves that require a gradient, got one of shape \(3,\) that does not"):
        joint_backward([x.sum()], [torch.ones(3)])
    with pytest.raises(NotDifferentiable, match="loss 1 must depend on the parameters"):
        joint_backward([x.sum(), torch.tensor(1.0)], [x])
    with pytest.raises(NonFinite, match="gradients must be finite, got NaN or infinity in loss 1"):
        joint_backward([x.sum(), (x - x).sqrt().sum()], [x])
    with pytest.raises(ValueError, match=r"aggregate must return weights \(1,\), got \(1, 1\)"):
        joint_backward([x.sum()], [x], aggregate=lambda G: G)
