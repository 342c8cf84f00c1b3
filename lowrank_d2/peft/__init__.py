"""Parameter-efficient fine-tuning of any torch module: methods, what trains, and the small files that result."""
from lowrank_d2.peft.adalora import AdaLoRA, RankBudget, regularization
from lowrank_d2.peft.adapter import Adapter
from lowrank_d2.peft.config import METHODS, PeftConfig
from lowrank_d2.peft.delta import DeltaHeader, DeltaSet, load_delta, read_header, save_delta
from lowrank_d2.peft.dora import DoRA
from lowrank_d2.peft.formats import load_peft, save_peft
from lowrank_d2.peft.inject import apply_peft, inject
from lowrank_d2.peft.loha import LoHa
from lowrank_d2.peft.lokr import LoKr
from lowrank_d2.peft.lora import LoRA
from lowrank_d2.peft.merge import merge
from lowrank_d2.peft.trainable import Counts, check_frozen, check_gradients, count, eval_frozen, freeze

__all__ = [
    "METHODS",
    "AdaLoRA",
    "Adapter",
    "Counts",
    "DeltaHeader",
    "DeltaSet",
    "DoRA",
    "LoHa",
    "LoKr",
    "LoRA",
    "PeftConfig",
    "RankBudget",
    "apply_peft",
    "check_frozen",
    "check_gradients",
    "count",
    "eval_frozen",
    "freeze",
    "inject",
    "load_delta",
    "load_peft",
    "merge",
    "read_header",
    "regularization",
    "save_delta",
    "save_peft",
]
