#!/usr/bin/env python
"""Speed and memory, as ratios that travel between machines: `benchmark.py mask_dino`, `seem`, `lors`, `lora_detr`,
`ms_deform_attn`, `lowrank`."""
import argparse
import sys
from pathlib import Path

from tabulate import tabulate

from lowrank_d2.engine.benchmark import lora_detr, lors, lowrank, mask_dino, ms_deform_attn, seem
from lowrank_d2.engine.defaults import run_tool, tool_parser

ROOT = Path(__file__).resolve().parents[1]
R50 = ROOT / "configs" / "mask_dino" / "maskdino_R50.yaml"
FOCAL_L = ROOT / "projects" / "SEEM" / "configs" / "seem_focall.yaml"
LORS = ROOT / "projects" / "LORS" / "configs"
LORA_DETR = ROOT / "projects" / "LoRA-DETR" / "configs" / "deformable_detr_R50_lora1.yaml"
DTYPES = ("float32", "float64", "float16", "bfloat16")


def parser() -> argparse.ArgumentParser:
    result = tool_parser(__doc__)
    commands = result.add_subparsers(dest="command", required=True)

    command = commands.add_parser("mask_dino", help="inference and training steps in multiples of the backbone's time")
    command.add_argument("--config-file", action="append", metavar="F", help=f"the model (default: {R50.name})")
    command.set_defaults(measure=lambda args: mask_dino.run(args.config_file or [str(R50)]))

    command = commands.add_parser("seem", help="inference and LoRA steps in multiples of the backbone's time")
    command.add_argument("--config-file", action="append", metavar="F", help=f"the model (default: {FOCAL_L.name})")
    command.set_defaults(measure=lambda args: seem.run(args.config_file or [str(FOCAL_L)]))

    command = commands.add_parser("ms_deform_attn", help="the operator against its published PyTorch form")
    command.add_argument("--device", default="cpu", help="cpu, cuda or cuda:0 (default: %(default)s)")
    command.add_argument("--dtype", default="float32", choices=DTYPES, help="default: %(default)s")
    command.set_defaults(measure=lambda args: ms_deform_attn.run(args.device, args.dtype))

    command = commands.add_parser("lowrank", help="low-rank methods against the frozen layer and against peft")
    command.add_argument("--threads", type=int, default=1, help="1: CPU time; more: wall-clock (default: %(default)s)")
    command.add_argument("--seconds", type=float, default=3.0, help="repeat each size so long (default: %(default)s)")
    command.set_defaults(measure=lambda args: lowrank.run(args.threads, seconds=args.seconds))

    command = commands.add_parser("lors", help="LORS against AdaMixer with the same sampling, both with a ResNet-50")
    command.add_argument("--rounds", type=int, default=10, help="the best of so many counts (default: %(default)s)")
    files = [str(LORS / "lors_R50.yaml")], [str(LORS / "adamixer_R50_2x64.yaml")]
    command.set_defaults(measure=lambda args: lors.run(*files, args.rounds))

    command = commands.add_parser("lora_detr", help="training steps with branches relative to none, ResNet-50")
    command.add_argument("--config-file", action="append", metavar="F", help=f"the model (default: {LORA_DETR.name})")
    command.add_argument("--rounds", type=int, default=8, help="the best of so many counts (default: %(default)s)")
    command.set_defaults(measure=lambda args: lora_detr.run(args.config_file or [str(LORA_DETR)], args.rounds))

    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    return result


def main(args: argparse.Namespace) -> dict:
    result = args.measure(args)
    if not args.json:
        print_table(result)
    return result


def print_table(result: dict, indent: str = "") -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            print_table(value, indent + "  ")
        elif isinstance(value, list):
            print(tabulate(value, headers="keys"), end="\n\n")
        else:
            print(f"{indent}{name:<{24 - len(indent)}}{value}")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
