#!/usr/bin/env python
"""Predicts instances in a file or folder: DIR/<name>.png and DIR/predictions.json (COCO results).

  tools/predict.py --config-file output/mine/config.yaml --input photos --output out MODEL.WEIGHTS output/mine/model_final.pth
  tools/predict.py --config-file projects/SEEM/configs/seem_focall.yaml --input photos --output out --classes "dolphin,calf" \\
      MODEL.WEIGHTS seem_focall_v1.pt
"""
import argparse
import sys

from lowrank_d2.engine.defaults import config_parser, load_config, run_tool
from lowrank_d2.engine.predict import predict_files
from lowrank_d2.errors import TrainingError


def parser() -> argparse.ArgumentParser:
    arguments = config_parser(__doc__)
    arguments.add_argument("--input", required=True, metavar="FILE_OR_FOLDER", help="an image, or a folder searched deeply")
    arguments.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and predictions.json")
    arguments.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="T", help="least score, 0 to 1 (default: %(default)s)"
    )
    arguments.add_argument(
        "--classes", metavar="A,B,...", help="what to look for, in words of your own, with a model that reads words (SEEM)"
    )
    return arguments


def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    words = None if args.classes is None else [word.strip() for word in args.classes.split(",")]
    summary = predict_files(cfg, args.input, args.output, args.confidence_threshold, words)
    print(f"{summary.images} images, {summary.instances} instances: {args.output}")
    if summary.skipped:
        raise TrainingError(
            f"{len(summary.skipped)} files were skipped, {', '.join(summary.skipped[:3])} among them: they are no images "
            "that can be read. All others are done."
        )


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
