#!/usr/bin/env python3
"""Draws the ground truth of a dataset: one picture an image, with masks, boxes and class names."""

import argparse
import sys
from pathlib import Path

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from lowrank_d2.data.datasets import load, register_json
from lowrank_d2.data.pictures import draw_record
from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.own_data import check_images_given, dataset_parser
from lowrank_d2.engine.predict import check_output
from lowrank_d2.errors import ConfigError
from lowrank_d2.files import write_with

OWN = "visualized"


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the pictures")
    result.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    result.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="magnify the pictures (default: %(default)s)"
    )
    return result


def main(args: argparse.Namespace) -> None:
    check_images_given(args)
    if args.limit is not None and args.limit < 1 or not 0 < args.scale <= 100:
        raise ConfigError(f"--limit {args.limit} and --scale {args.scale} must be above 0, the scale at most 100.")
    data = register_json(OWN, args.json_file, args.images) if args.json_file else load(args.dataset)
    data.report.raise_errors()
    check_output(args.output, [record["file_name"] for record in data.records])
    metadata = MetadataCatalog.get(OWN if args.json_file else args.dataset)
    names = set()
    for record in tqdm(data.records[: args.limit], "drawing", unit="image", disable=None):
        stem = Path(record["file_name"]).stem
        name = stem if stem not in names else f"{stem}_{record['image_id']}"
        names.add(name)
        picture = draw_record(record, metadata, args.scale)
        write_with(args.output / f"{name}.png", lambda path: picture.save(path, format="PNG"))
    print(f"{len(names)} pictures in {args.output}")


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
