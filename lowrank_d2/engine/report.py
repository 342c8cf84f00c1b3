"""How large a configured model is and how much of it trains, without allocating it."""
from detectron2.config import CfgNode
from tabulate import tabulate

from lowrank_d2.engine.rehearsal import build_on_meta
from lowrank_d2.peft import Counts, count


def report(cfg: CfgNode) -> Counts:
    """Counts the parameters of the model that `cfg` describes, built on the meta device."""
    return count(build_on_meta(cfg))


def table(counts: Counts) -> str:
    """The counts as text, one row a component."""
    rows = [[name, row["base"], row["added"], row["trainable"]] for name, row in counts.by_component.items()]
    rows.append(["total", counts.base, counts.added, counts.trainable])
    shown = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in rows]
    text = tabulate(shown, headers=["component", "base", "added", "trainable"], colalign=["left", *["right"] * 3])
    if counts.added_after_budget != counts.added:
        text += f"\nOnce AdaLoRA has reached its budget, {counts.added_after_budget:,} of the added {counts.added:,} are left."
    return f"{text}\n{counts.trainable:,} of {counts.total:,} parameters train: {counts.percent_trainable:.3f} %"
