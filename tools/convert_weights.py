#!/usr/bin/env python3
"""Writes the weights of a checkpoint, alone, under the names of a code base. Merge a delta first (tools/merge.py).

    tools/convert_weights.py --to maskdino output/model_final.pth model_for_the_original.pth
    tools/convert_weights.py --to lowrank_d2 output/model_final.pth base.safetensors
"""
import argparse
import sys

from lowrank_d2.engine.defaults import run_tool, tool_parser
from lowrank_d2.engine.weight_files import FORMATS, convert_weights


def parser() -> argparse.ArgumentParser:
    options = tool_parser(__doc__)
    options.add_argument("--to", required=True, choices=sorted(FORMATS), help="maskdino: the original Mask DINO; lowrank_d2: ours")
    options.add_argument("input", metavar="IN", help="a checkpoint: .pth or .safetensors")
    options.add_argument("output", metavar="OUT", help="what to write: .pth or .safetensors")
    return options


def main(args: argparse.Namespace) -> None:
    print(f"{args.output}: {convert_weights(args.to, args.input, args.output)} tensors")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
