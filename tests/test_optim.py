"""Optimisers against torch's own."""

import pytest
import torch

from utils.optim import RMSprop, load_state_tensors, make_optimizer, state_tensors


def steps(optimizer, parameters, gradients):
    for gradient in gradients:
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.grad = part.clone()
        optimizer.step()
    return parameters


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_rmsprop_is_that_of_torch_from_the_first_step_on(weight_decay, scale):
    torch.manual_seed(0)
    start = [torch.randn(3, 41, 7), torch.randn(5)]
    gradients = [[scale * torch.randn_like(part) for part in start] for _ in range(40)]
    gradients[3][0][0] = 0
    sides = {}
    for kind in (RMSprop, torch.optim.RMSprop):
        parameters = [torch.nn.Parameter(part.clone()) for part in start]
        sides[kind] = steps(kind(parameters, lr=1e-2, weight_decay=weight_decay), parameters, gradients)
    for ours, theirs in zip(*sides.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)  # 40 steps of at most 0.1


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_weight_decay_is_no_gradient(optimizer):
    parameter = torch.nn.Parameter(torch.ones(9))
    parameter.grad = torch.zeros(9)
    make_optimizer(optimizer, [parameter], lr=1e-2, weight_decay=0.1).step()
    assert (parameter < 1).all() and not parameter.grad.any()


@pytest.mark.bits
def test_rmsprop_goes_on_from_its_kept_state_to_the_same_bits():
    torch.manual_seed(0)
    start, gradients = torch.randn(100, 9), [[torch.randn(100, 9)] for _ in range(6)]
    through = [torch.nn.Parameter(start.clone())]
    steps(RMSprop(through, 1e-2, 0.0), through, gradients)
    cut = [torch.nn.Parameter(start.clone())]
    first = RMSprop(cut, 1e-2, 0.0)
    steps(first, cut, gradients[:3])
    then = RMSprop(cut, 1e-2, 0.0)
    load_state_tensors(then, state_tensors(first))
    steps(then, cut, gradients[3:])
    assert torch.equal(cut[0], through[0])


@pytest.mark.parametrize("tensors", [{}, {"0.step": torch.zeros(()), "0.square_avg": torch.zeros(3)}])
def test_the_state_of_another_optimiser_is_refused(tensors):
    optimizer = RMSprop([torch.nn.Parameter(torch.zeros(3))], 1e-2, 0.0)
    with pytest.raises(ValueError, match="step, exp_avg_sq"):
        load_state_tensors(optimizer, tensors)
