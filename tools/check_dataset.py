#!/usr/bin/env python3
"""Says what is wrong with a dataset: every record and every image header, in one table.

Exit code 0 when it can be used (the table may hold warnings), 2 when it cannot.
"""

import argparse
import json
import sys

from lowrank_d2.data.check import check_dataset, check_json, check_together
from lowrank_d2.data.coco_json import CocoData
from lowrank_d2.data.image_files import EXIF_CHOICES, MAX_PIXELS
from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.own_data import check_images_given, dataset_parser
from lowrank_d2.errors import DataError


def parser() -> argparse.ArgumentParser:
    result = dataset_parser(__doc__)
    result.add_argument("--json-report", action="store_true", help="print the report as one JSON object, the last line")
    result.add_argument(
        "--decode", action="store_true", help="decode every image, which finds all damage and takes longer"
    )
    result.add_argument("--skip-missing", action="store_true", help="leave images out that are not there (with --json)")
    result.add_argument("--exif", choices=EXIF_CHOICES, default="apply", help="turn photographs upright, or not")
    result.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="largest image (default: %(default)s)"
    )
    return result


def main(args: argparse.Namespace) -> None:
    check_images_given(args)
    options = {"exif": args.exif, "max_pixels": args.max_pixels, "decode": args.decode}
    if args.dataset:
        data = check_dataset(args.dataset, **options)
    else:
        data = check_json(args.json_file, args.images, skip_missing=args.skip_missing, **options)
    if not data.report.of("error"):
        data.report.extend(check_together([data], []))
    print(_summary(data))
    if list(data.report):
        print(data.report.table())
    if args.json_report:
        print(_as_json(data))
    errors = data.report.of("error")
    if errors:
        raise DataError(f"{data.report.subject} cannot be used: {'; '.join(each.what for each in errors)}. See the table.")


def _summary(data: CocoData) -> str:
    objects = sum(len(record["annotations"]) for record in data.records)
    return f"{data.report.subject}: {len(data.records)} images, {objects} objects, {len(data.classes)} classes"


def _as_json(data: CocoData) -> str:
    report = json.loads(data.report.as_json())
    counts = {level: len(data.report.of(level)) for level in ("error", "warning", "info")}
    return json.dumps({**report, **counts, "images": len(data.records), "classes": data.classes}, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
