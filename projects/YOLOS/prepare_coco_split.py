#!/usr/bin/env python3
"""Writes the training, validation and test parts of 3,000 images of COCO val2017 that the recipes here use.

    python projects/YOLOS/prepare_coco_split.py          # below $DETECTRON2_DATASETS/coco/annotations
"""
import argparse
import os
import sys
from pathlib import Path

from yolos.coco_split import SIZES, write_split

from lowrank_d2.data.datasets.catalog import VARIABLE
from lowrank_d2.engine.defaults import run_tool, tool_parser

ANNOTATIONS = Path(os.environ.get(VARIABLE, "datasets")) / "coco" / "annotations"


def parser() -> argparse.ArgumentParser:
    result = tool_parser(__doc__)
    result.add_argument(
        "--annotations", type=Path, metavar="FILE", default=ANNOTATIONS / "instances_val2017.json",
        help="COCO's annotations (default: %(default)s)",
    )
    result.add_argument(
        "--output", type=Path, metavar="DIR", default=ANNOTATIONS, help="folder to write to (default: %(default)s)"
    )
    result.add_argument("--seed", type=int, default=42, metavar="S", help="of the choice (default: %(default)s)")
    return result


def main(args: argparse.Namespace) -> None:
    for path in write_split(args.annotations, args.output, args.seed):
        print(path)
    print(", ".join(f"{count} {name}" for name, count in SIZES.items()))


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
