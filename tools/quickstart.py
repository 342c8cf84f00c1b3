#!/usr/bin/env python
"""What `make quickstart` runs: the small base learns a generated data set with LoRA; the last line is one JSON object."""
import json
import sys
from pathlib import Path

from lowrank_d2.engine.defaults import run_tool, tool_parser
from lowrank_d2.engine.quickstart import quickstart


def parser():
    result = tool_parser(__doc__)
    result.add_argument("--output", type=Path, default=Path("output/quickstart"), help="folder of everything it makes")
    result.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration keys and values, for shorter trials say")
    return result


def main(args) -> None:
    print(json.dumps(quickstart(args.output, args.opts)), flush=True)


if __name__ == "__main__":
    sys.exit(run_tool(main, parser()))
