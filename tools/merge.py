#!/usr/bin/env python3
"""Merges a LoRA delta into its base and writes a plain checkpoint, for MODEL.WEIGHTS of a config without MODEL.PEFT.

    tools/merge.py --config-file F --delta delta_best.safetensors --output merged.safetensors MODEL.WEIGHTS base.pth

Branches of MODEL.LORA_DETR, which only training uses, are left out; from a full checkpoint of such a run too:

    tools/merge.py --config-file F --output plain.safetensors MODEL.WEIGHTS output/model_final.pth
"""
import argparse
import sys

from lowrank_d2.engine.defaults import config_parser, load_config, run_tool
from lowrank_d2.engine.weight_files import drop_branches, merge_delta


def parser() -> argparse.ArgumentParser:
    options = config_parser(__doc__)
    options.add_argument("--delta", metavar="D", help="the delta file; without one, branches are left out of MODEL.WEIGHTS")
    options.add_argument("--output", required=True, metavar="W", help="what to write: .safetensors or .pth")
    return options


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    if args.delta is None:
        names = drop_branches(cfg, args.output)
        print(f"{args.output}: without branches, {len(names) or cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes.")
        return
    header = merge_delta(cfg, args.delta, args.output)
    print(f"{args.output}: {header.num_classes} classes ({', '.join(header.class_names)}).")
    print(f"Use it as MODEL.WEIGHTS, with {header.num_classes} as NUM_CLASSES and without any MODEL.PEFT key.")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
