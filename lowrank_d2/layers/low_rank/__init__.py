"""Low-rank weights: updates of a frozen one (`algebra`), and what the layers of a stack own beside a shared one."""
from lowrank_d2.layers.low_rank.algebra import (
    Hadamard,
    Kronecker,
    LowRank,
    Magnitude,
    Update,
    adapted_linear,
    khatri_rao,
    merging_pays,
    thin_pays,
)

__all__ = [
    "Hadamard",
    "Kronecker",
    "LowRank",
    "Magnitude",
    "Update",
    "adapted_linear",
    "khatri_rao",
    "merging_pays",
    "thin_pays",
]
