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
from lowrank_d2.layers.low_rank.residual import GeneratedKernel, LowRankResidualKernel, LowRankResidualLinear
from lowrank_d2.layers.low_rank.share import SharingReport, share_stack
from lowrank_d2.layers.low_rank.shared import SharedLinear, together

__all__ = [
    "GeneratedKernel",
    "Hadamard",
    "Kronecker",
    "LowRank",
    "LowRankResidualKernel",
    "LowRankResidualLinear",
    "Magnitude",
    "SharedLinear",
    "SharingReport",
    "Update",
    "adapted_linear",
    "khatri_rao",
    "merging_pays",
    "share_stack",
    "thin_pays",
    "together",
]
