"""Adam and AdamW, step for step as torch.optim computes them.

Kingma & Ba 2015, arXiv 1412.6980; Loshchilov & Hutter 2019, arXiv 1711.05101. Ours because the
first optimiser that torch.optim makes loads torch's compiler: 3 s and 100 MB (torch 2.13), which a
box pays at every start, for a dozen lines of arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(eq=False)
class Adam:
    """The state of one optimiser; `decoupled` makes it AdamW."""

    parameters: Sequence[Tensor]  # leaves; changed in place
    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    steps: int = 0
    _means: list[Tensor] = field(init=False)
    _squares: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Moves the parameters by one step; `gradients` has one for each."""
        self.steps += 1
        beta1, beta2 = self.betas
        step_size = self.lr / (1 - beta1**self.steps)
        root = (1 - beta2**self.steps) ** 0.5
        for parameter, gradient, mean, square in zip(
            self.parameters, gradients, self._means, self._squares, strict=True
        ):
            if self.decoupled:
                parameter.mul_(1 - self.lr * self.weight_decay)
            else:
                gradient = gradient.add(parameter, alpha=self.weight_decay)  # noqa: PLW2901
            mean.lerp_(gradient, 1 - beta1)
            square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            denominator = (square.sqrt() / root).add_(self.eps)
            parameter.addcdiv_(mean, denominator, value=-step_size)
