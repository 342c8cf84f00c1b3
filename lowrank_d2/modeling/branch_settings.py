"""What MODEL.LORA_DETR means: one-to-many branches of a decoder's feed-forward parts, and how they are supervised."""
from dataclasses import dataclass
from typing import Optional

from detectron2.config import CfgNode
from torch import nn

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.branches import INITS, FullBranches, LowRankBranches
from lowrank_d2.modeling.one_to_many import RULES, OneToManyAssigner

KINDS = ("lora", "ffn")


@dataclass(frozen=True)
class BranchSettings:
    """MODEL.LORA_DETR, whose comments say what each value means; `k`, `alpha` and `tau` have one value a branch."""

    k: tuple[int, ...]
    alpha: tuple[float, ...]
    tau: tuple[float, ...]
    kind: str = "lora"
    rank: int = 32
    init: str = "zero"
    rule: str = "released"
    cap: float = 0.25
    merge_indices: bool = False
    loss_weight: float = 1.0

    @classmethod
    def from_node(cls, node: CfgNode, num_queries: int) -> Optional["BranchSettings"]:
        """None without branches, which is K None.

        Raises:
            ConfigError: a value that no branch can have.
        """
        if node.K is None:
            return None
        k = node.K
        if not isinstance(k, (list, tuple)) or not k:
            raise ConfigError(
                f"MODEL.LORA_DETR.K is {k!r}. Give one k a branch, such as [2, 4, 6], or None for no branches."
            )
        wrong = [each for each in k if type(each) is not int or not 1 <= each <= num_queries]
        if wrong:
            raise ConfigError(
                f"MODEL.LORA_DETR.K is {list(k)}, of which {wrong[0]!r} is impossible: an object takes from 1 up to "
                f"all {num_queries} queries. Use integers of at least 1 and at most {num_queries}."
            )
        if isinstance(node.RANK, bool) or not isinstance(node.RANK, int) or node.RANK < 1:
            raise ConfigError(f"MODEL.LORA_DETR.RANK is {node.RANK!r}. Use an integer of 1 or more.")
        for key, allowed in (("KIND", KINDS), ("INIT", INITS), ("RULE", RULES)):
            if node[key] not in allowed:
                listed = ", ".join(map(repr, allowed))
                raise ConfigError(f"MODEL.LORA_DETR.{key} is {node[key]!r}. Use one of {listed}.")
        if not 0 < node.CAP <= 1:
            raise ConfigError(f"MODEL.LORA_DETR.CAP is {node.CAP}. Use a share of the queries above 0 and at most 1.")
        if not 0 <= node.LOSS_WEIGHT < float("inf"):
            raise ConfigError(f"MODEL.LORA_DETR.LOSS_WEIGHT is {node.LOSS_WEIGHT}. Use a number of at least 0.")
        return cls(
            k=tuple(k),
            alpha=_of_each_branch(node, "ALPHA", len(k)),
            tau=_of_each_branch(node, "TAU", len(k)),
            kind=node.KIND,
            rank=node.RANK,
            init=node.INIT,
            rule=node.RULE,
            cap=node.CAP,
            merge_indices=node.MERGE_INDICES,
            loss_weight=node.LOSS_WEIGHT,
        )

    @property
    def count(self) -> int:
        """Number of branches."""
        return len(self.k)

    def build(self, *, embed_dim: int, hidden_dim: int, dropout: float) -> nn.Module:
        """The branches of one decoder layer."""
        if self.kind == "ffn":
            return FullBranches(count=self.count, embed_dim=embed_dim, hidden_dim=hidden_dim, dropout=dropout)
        return LowRankBranches(
            count=self.count, embed_dim=embed_dim, hidden_dim=hidden_dim, rank=self.rank, init=self.init
        )

    def assigner(self) -> OneToManyAssigner:
        return OneToManyAssigner(
            k=self.k, tau=self.tau, alpha=self.alpha, cap=self.cap, rule=self.rule, merge_indices=self.merge_indices
        )


def _of_each_branch(node: CfgNode, key: str, count: int) -> tuple[float, ...]:
    """`key`S if it is given, else `key` for all branches."""
    values = tuple(node[f"{key}S"]) or (node[key],) * count
    name = f"{key}S" if node[f"{key}S"] else key
    if len(values) != count:
        raise ConfigError(
            f"MODEL.LORA_DETR.{name} has {len(values)} values, but K asks for {count} branches. Give one a branch, or "
            f"[] and {key} for all."
        )
    if not all(isinstance(value, (int, float)) and 0 <= value <= 1 for value in values):
        raise ConfigError(f"MODEL.LORA_DETR.{name} is {node[name]}. Use numbers from 0 to 1.")
    return tuple(float(value) for value in values)
