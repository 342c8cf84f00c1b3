#!/usr/bin/env python3
"""Writes small generated datasets in the on-disk formats of the real ones; the output folder is then a $DETECTRON2_DATASETS."""
import argparse
import sys
from pathlib import Path

from lowrank_d2.data import mini
from lowrank_d2.errors import LowRankError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--datasets", nargs="+", default=list(mini.DOMAINS), choices=list(mini.DOMAINS), metavar="NAME",
        help=f"which of {', '.join(mini.DOMAINS)} (default: all)",
    )
    parser.add_argument("--train", type=int, default=200, metavar="N", help="training images at least (default: %(default)s)")
    parser.add_argument("--val", type=int, default=50, metavar="N", help="validation images at least (default: %(default)s)")
    parser.add_argument("--size", type=int, metavar="PX", help="height of the images (default: each dataset's own)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same images (default: %(default)s)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    for name in args.datasets:
        print(mini.build(args.output, name, args.train, args.val, args.size, args.seed))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LowRankError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
