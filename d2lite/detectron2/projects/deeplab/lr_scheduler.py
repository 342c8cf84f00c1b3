"""Polynomial decay of the learning rate, after a warm-up."""
import torch
from torch.optim.lr_scheduler import LRScheduler


class WarmupPolyLR(LRScheduler):
    """``base_lr * warm-up * (1 - iteration / max_iters) ** power``, as DeepLab trains.

    The warm-up is ``warmup_factor`` at first and 1 after ``warmup_iters``; after it the rate does not fall below
    ``constant_ending`` times the base rate. ``warmup_method`` is "linear" or "constant".
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, max_iters: int, warmup_factor: float = 0.001, warmup_iters: int = 1000,
        warmup_method: str = "linear", last_epoch: int = -1, power: float = 0.9, constant_ending: float = 0.0,
    ):
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"warmup_method is 'linear' or 'constant', not {warmup_method!r}.")
        self.max_iters, self.power, self.constant_ending = max_iters, power, constant_ending
        self.warmup_factor, self.warmup_iters, self.warmup_method = warmup_factor, warmup_iters, warmup_method
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
