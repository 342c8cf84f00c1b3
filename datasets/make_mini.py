#!/usr/bin/env python3
"""Writes small generated datasets in the on-disk formats of the real ones; the output folder is then a
$DETECTRON2_DATASETS."""

import argparse
import sys
from pathlib import Path

from lowrank_d2.data import mini
from lowrank_d2.engine.defaults import run_tool, tool_parser


def parser() -> argparse.ArgumentParser:
    result = tool_parser(__doc__)
    result.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    result.add_argument(
        "--datasets",
        nargs="+",
        default=list(mini.DOMAINS),
        choices=list(mini.DOMAINS),
        metavar="NAME",
        help=f"which of {', '.join(mini.DOMAINS)} (default: all)",
    )
    result.add_argument(
        "--train", type=int, default=200, metavar="N", help="training images at least (default: %(default)s)"
    )
    result.add_argument(
        "--val", type=int, default=50, metavar="N", help="validation images at least (default: %(default)s)"
    )
    result.add_argument("--size", type=int, metavar="PX", help="height of the images (default: each dataset's own)")
    result.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same images (default: %(default)s)"
    )
    return result


def main(args: argparse.Namespace) -> None:
    for name in args.datasets:
        print(mini.build(args.output, name, args.train, args.val, args.size, args.seed))


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
