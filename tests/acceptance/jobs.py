"""Runs several command lines of train_net.py in one process: `python jobs.py JOBS.json CODES.json`."""

import json
import sys

from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.run import main, train_parser

if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as stream:
        jobs = json.load(stream)
    codes = {}
    for name, words in jobs.items():
        codes[name] = run_tool(main, train_parser(""), words)
        with open(sys.argv[2], "w", encoding="utf-8") as stream:
            json.dump(codes, stream)
