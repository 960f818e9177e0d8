"""Our Adam is torch's, bit for bit; torch.optim is the slow, obvious version."""

from __future__ import annotations

import pytest
import torch

from fedclip_edge.learning.optimizers import Adam


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
    reference = kind(theirs, foreach=False, **settings)  # type: ignore[arg-type]
    for _ in range(20):
        gradients = [torch.randn(p.shape, generator=random) for p in ours]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step(gradients)
        reference.step()
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine, other)
