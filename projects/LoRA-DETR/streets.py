#!/usr/bin/env python
"""The same small Deformable DETR with and without branches, equally long on the generated street scenes.

    python projects/LoRA-DETR/streets.py --output output/streets

Both arms share data, seeds, losses, learning rates and schedule; they differ in MODEL.LORA_DETR.K alone. A run that is
finished is not run again, so that a call with more seeds goes on where the last one ended, and two calls of one arm
each can share the work.
"""
import argparse
import contextlib
import json
import os
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from safetensors.torch import load_file
from tabulate import tabulate

from lowrank_d2.data import mini
from lowrank_d2.data.datasets import cityscapes
from lowrank_d2.data.datasets.catalog import VARIABLE, coco_metadata, register
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.trainer import LowRankTrainer

PROJECT = Path(__file__).resolve().parent
CONFIGS = [str(PROJECT / "configs" / f"{name}.yaml") for name in ("deformable_detr_R50_lora3", "streets")]
BASE = PROJECT.parents[1] / "lowrank_d2" / "assets" / "maskdino_small.safetensors"
SCENES = {"train": 600, "val": 150}
ARMS = {"without": "None", "branches": "[2, 4, 6]"}
EVALUATIONS = 6  # of a run
Curve = dict[int, float]  # iterations -> box AP


def prepare(output: Path) -> Path:
    """Makes and registers the scenes as data sets of boxes; returns the file of the backbone to start from."""
    os.environ[VARIABLE] = str(output / "datasets")
    mini.build(output / "datasets", "cityscapes", **SCENES)
    for split in SCENES:
        metadata = coco_metadata(len(cityscapes.CLASSES))
        register(f"streets_{split}", partial(cityscapes.read, split), cityscapes.CLASSES, **metadata)
    weights = output / "backbone.pth"
    if not weights.exists():
        backbone = {name: tensor for name, tensor in load_file(BASE).items() if name.startswith("backbone.")}
        torch.save({"model": backbone}, weights)
    return weights


def configuration(folder: Path, weights: Path, arm: str, seed: int, iterations: int) -> CfgNode:
    return load_config(CONFIGS, [
        "MODEL.WEIGHTS", str(weights), "MODEL.LORA_DETR.K", ARMS[arm], "SEED", str(seed), "OUTPUT_DIR", str(folder),
        "SOLVER.MAX_ITER", str(iterations), "SOLVER.STEPS", f"({iterations * 4 // 5},)",
        "SOLVER.CHECKPOINT_PERIOD", str(iterations), "TEST.EVAL_PERIOD", str(iterations // EVALUATIONS),
    ])  # fmt: skip


def train(cfg: CfgNode) -> Curve:
    """The box AP on the way of a run, or of what an earlier call left in OUTPUT_DIR."""
    folder = Path(cfg.OUTPUT_DIR)
    if not (folder / "model_final.pth").exists():
        trainer = LowRankTrainer(cfg)
        trainer.resume_or_load(resume=False)
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            trainer.train()
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return {row["iteration"] + 1: row["bbox/AP"] for row in rows if "bbox/AP" in row}


def table(curves: dict[str, dict[int, Curve]]) -> str:
    """A row for every run and for how far branches are ahead; of several seeds also mean and standard deviation."""
    rows = [row for arm, seeds in curves.items() for row in _rows(arm, seeds)]
    if len(curves) == len(ARMS):
        without, branches = curves.values()
        ahead = {seed: {i: branches[seed][i] - ap for i, ap in curve.items()} for seed, curve in without.items()}
        rows += _rows("ahead", ahead, sign="+")
    iterations = next(iter(next(iter(curves.values())).values()))
    return tabulate(rows, headers=["", "seed", *map(str, iterations)], tablefmt="pipe", disable_numparse=True)


def _rows(name: str, seeds: dict[int, Curve], sign: str = "") -> list[list]:
    rows = [[name, seed, *(f"{ap:{sign}.1f}" for ap in curve.values())] for seed, curve in seeds.items()]
    if len(seeds) > 1:
        columns = list(zip(*(curve.values() for curve in seeds.values())))
        spread = (f"{statistics.mean(aps):{sign}.1f} ± {statistics.stdev(aps):.1f}" for aps in columns)
        rows.append([name, "mean", *spread])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/streets"), help="folder of everything it makes")
    parser.add_argument("--iterations", type=int, default=1200, help="of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="with or without branches, or both")
    args = parser.parse_args()
    output = args.output.resolve()
    weights = prepare(output)
    curves: dict[str, dict[int, Curve]] = {arm: {} for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            curves[arm][seed] = train(configuration(output / f"{arm}_{seed}", weights, arm, seed, args.iterations))
            print(f"{arm}, seed {seed}: {curves[arm][seed]}", file=sys.stderr, flush=True)
    print(table(curves))


if __name__ == "__main__":
    sys.exit(main())
