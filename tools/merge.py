#!/usr/bin/env python3
"""Merges a LoRA delta into its base and writes a plain checkpoint, for MODEL.WEIGHTS of a config without MODEL.PEFT.

    tools/merge.py --config-file F --delta delta_best.safetensors --output merged.safetensors MODEL.WEIGHTS base.pth
"""
import argparse
import sys

from lowrank_d2.engine.defaults import config_parser, load_config, run_tool
from lowrank_d2.engine.weight_files import merge_delta


def parser() -> argparse.ArgumentParser:
    options = config_parser(__doc__)
    options.add_argument("--delta", required=True, metavar="D", help="the delta file")
    options.add_argument("--output", required=True, metavar="W", help="what to write: .safetensors or .pth")
    return options


def main(args: argparse.Namespace) -> None:
    header = merge_delta(load_config(args.config_file, args.opts), args.delta, args.output)
    print(f"{args.output}: {header.num_classes} classes ({', '.join(header.class_names)}).")
    print(f"Use it as MODEL.WEIGHTS, with {header.num_classes} as NUM_CLASSES and without any MODEL.PEFT key.")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
