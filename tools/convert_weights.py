#!/usr/bin/env python3
"""Writes the weights of a checkpoint, alone, under the names of a code base. Merge a delta first (tools/merge.py).

    tools/convert_weights.py --to maskdino output/model_final.pth model_for_the_original.pth
    tools/convert_weights.py --to lowrank_d2 output/model_final.pth base.safetensors

Or makes a delta of a checkpoint that the adapter paper's code wrote, which holds nothing but what was tuned:

    tools/convert_weights.py --to delta --config-file config_of_that_run.yaml --class-names dolphin tuned.pth \\
        delta.safetensors MODEL.WEIGHTS base.pth
"""
import argparse
import sys

from lowrank_d2.engine.defaults import load_config, run_tool, tool_parser
from lowrank_d2.engine.weight_files import FORMATS, PROJECT_FORMATS, convert_tuned, convert_weights
from lowrank_d2.errors import ConfigError

DELTA = "delta"


def parser() -> argparse.ArgumentParser:
    options = tool_parser(__doc__)
    options.add_argument(
        "--to", required=True, choices=[*sorted({*FORMATS, *PROJECT_FORMATS}), DELTA],
        help="maskdino, seem: the original; lowrank_d2: ours; delta: a delta file of ours",
    )
    options.add_argument("--config-file", action="append", metavar="F", help="with delta: of the run that wrote IN")
    options.add_argument(
        "--class-names", default="", metavar="A,B,...", help="with delta: default those of the config's training set"
    )
    options.add_argument("input", metavar="IN", help="a checkpoint: .pth or .safetensors")
    options.add_argument("output", metavar="OUT", help="what to write: .pth or .safetensors; delta: .safetensors")
    options.add_argument("opts", nargs="*", metavar="KEY VALUE", help="with delta: configuration keys and values")
    return options


def main(args: argparse.Namespace) -> None:
    if (args.to == DELTA) != bool(args.config_file):
        raise ConfigError("--to delta needs --config-file, the config of the run; the other formats take none.")
    if args.to == DELTA:
        names = [name.strip() for name in args.class_names.split(",") if name.strip()]
        header = convert_tuned(load_config(args.config_file, args.opts), args.input, args.output, names)
        print(f"{args.output}: {len(header.tensors)} tensors, {header.num_classes} classes ({', '.join(header.class_names)})")
        return
    if args.opts or args.class_names:
        raise ConfigError(f"--to {args.to} takes no --class-names and no KEY VALUE: it writes all tensors as they are.")
    print(f"{args.output}: {convert_weights(args.to, args.input, args.output)} tensors")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
