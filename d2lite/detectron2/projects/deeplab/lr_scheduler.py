"""Polynomial decay of the learning rate, after a warm-up."""
import torch
from torch.optim.lr_scheduler import LRScheduler


class WarmupPolyLR(LRScheduler):
    """``base_lr * warm-up * (1 - iteration / max_iters) ** power``, as DeepLab trains."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_iters: int, warmup_factor: float = 0.001, warmup_iters: int = 1000,
        warmup_method: str = "linear", last_epoch: int = -1, power: float = 0.9, constant_ending: float = 0.0,
    ):
        """
        Args:
            warmup_factor, warmup_iters: the factor that the rate starts with, and how long it takes to become 1.
            warmup_method: "linear" or "constant".
            constant_ending: after the warm-up, the fraction of the base rate below which it does not fall.
        """
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"warmup_method is 'linear' or 'constant', not {warmup_method!r}.")
        self.max_iters = max_iters
        self.warmup_factor = warmup_factor
        self.warmup_iters = warmup_iters
        self.warmup_method = warmup_method
        self.power = power
        self.constant_ending = constant_ending
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The rates of this iteration, one a parameter group."""
        warmup = self._warmup()
        decay = (1 - self.last_epoch / self.max_iters) ** self.power
        if warmup == 1.0 and self.constant_ending > 0:
            decay = max(decay, self.constant_ending)
        return [base_lr * warmup * decay for base_lr in self.base_lrs]

    def _warmup(self) -> float:
        if self.last_epoch >= self.warmup_iters:
            return 1.0
        if self.warmup_method == "constant":
            return self.warmup_factor
        done = self.last_epoch / self.warmup_iters
        return self.warmup_factor * (1 - done) + done
