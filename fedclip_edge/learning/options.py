"""The options of all methods trained by gradients; a method may add its own.

The defaults are those of FedCLIP's reference code (microsoft/PersonalizedFL at 441670e,
fedclip/methods/fed_at_clip.py, lines 123 to 141). The file of a method says if its defaults differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """Training options; the constructor raises ValueError with the option's name and range."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # adamw decouples the weight decay
    lr: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    batch_size: int = 32
    epochs: int = 1
    weighting: Literal["uniform", "pictures"] = "uniform"  # weight 1, or the number of pictures
    proximal_mu: float = 0.0  # FedProx: mu / 2 |w - received|^2 is added to the loss

    @property
    def loss(self) -> str:
        """The name of the loss (losses.py); a method may have it as an option."""
        return "cross-entropy"

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}: expected above 0 and at most 1, got {getattr(self, name)}"
                )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(
                f"beta1, beta2: expected at least 0 and below 1, got {self.beta1} and {self.beta2}"
            )
        if not 0 <= self.weight_decay <= 10:
            raise ValueError(f"weight_decay: expected 0 to 10, got {self.weight_decay}")
        if not 0 <= self.proximal_mu <= 1e6:
            raise ValueError(f"proximal_mu: expected 0 to 1e6, got {self.proximal_mu}")
        if self.batch_size < 2:
            raise ValueError(f"batch_size: expected 2 or more, got {self.batch_size}")
        if self.epochs < 1:
            raise ValueError(f"epochs: expected 1 or more, got {self.epochs}")
