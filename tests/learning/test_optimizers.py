"""Our optimisers, compared bit for bit with those of torch.optim."""

from __future__ import annotations

import pytest
import torch

from fedclip_edge.learning.optimizers import Adam, Sgd


@pytest.mark.parametrize("decoupled", [False, True])
def test_every_step_equals_torch_optim(decoupled: bool) -> None:
    random = torch.Generator().manual_seed(0)
    ours = [torch.randn(5, 4, generator=random), torch.randn(4, generator=random)]
    theirs = [parameter.clone().requires_grad_() for parameter in ours]
    settings = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2}
    optimizer = Adam(
        ours, lr=3e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, decoupled=decoupled
    )
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind(theirs, fused=True, **settings)  # type: ignore[arg-type]
    for _ in range(20):
        gradients = [torch.randn(p.shape, generator=random) for p in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step(gradients)
        reference.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_kernel_computes_what_single_operations_do(decoupled: bool) -> None:
    """Compared with plain arithmetic; the fused kernel rounds some steps together."""
    random = torch.Generator().manual_seed(1)
    ours = [torch.randn(33, 17, generator=random)]
    theirs = [ours[0].clone().requires_grad_()]
    optimizer = Adam(ours, 1e-2, (0.9, 0.98), 1e-6, 0.2, decoupled)
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind(theirs, 1e-2, (0.9, 0.98), 1e-6, 0.2, foreach=False)
    for _ in range(20):
        gradient = torch.randn(33, 17, generator=random)
        theirs[0].grad = gradient.clone()
        optimizer.step([gradient])
        reference.step()
    torch.testing.assert_close(ours[0], theirs[0].detach(), rtol=1e-5, atol=1e-6)


def test_a_gradient_may_lie_in_memory_as_it_likes() -> None:
    one, other = (torch.ones(6, 4) for _ in range(2))
    gradient = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).T
    for parameter, its in ((one, gradient), (other, gradient.contiguous())):
        Adam([parameter], 0.1, (0.9, 0.9), 1e-6, 0.0, decoupled=False).step([its])
    assert torch.equal(one, other)


def test_sgd_equals_torch_optim() -> None:
    random = torch.Generator().manual_seed(0)
    ours = [torch.randn(5, 4, generator=random)]
    theirs = [ours[0].clone().requires_grad_()]
    optimizer = Sgd(ours, lr=0.03, weight_decay=0.1)
    reference = torch.optim.SGD(theirs, lr=0.03, weight_decay=0.1, foreach=False)
    for _ in range(20):
        gradient = torch.randn(5, 4, generator=random)
        theirs[0].grad = gradient.clone()
        optimizer.step([gradient])
        reference.step()
        assert torch.equal(ours[0], theirs[0])
