#!/usr/bin/env python3
"""Counts the parameters of a configured model: of the base, added by methods, trainable.

    tools/report.py --config-file configs/mask_dino/maskdino_R50.yaml configs/methods/lora_r8.yaml
"""
import argparse
import sys

from lowrank_d2.engine.defaults import config_parser, load_config, run_tool
from lowrank_d2.engine.report import report, table


def main(args: argparse.Namespace) -> dict:
    counts = report(load_config(args.config_file, args.opts))
    print(table(counts))
    return counts.as_dict()


if __name__ == "__main__":
    sys.exit(run_tool(main, config_parser(__doc__, json_output=True)))
