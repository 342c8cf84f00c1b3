#!/usr/bin/env python
"""Trains, resumes or evaluates a model.

  tools/train_net.py --config-file configs/mask_dino/maskdino_R50.yaml configs/datasets/ndd20.yaml configs/methods/lora_r8.yaml
  tools/train_net.py --config-file C.yaml --train-json A.json --train-images DIR --epochs 20 OUTPUT_DIR output/mine
"""
import sys

from lowrank_d2.engine.defaults import run_tool
from lowrank_d2.engine.run import main, train_parser

if __name__ == "__main__":
    sys.exit(run_tool(main, train_parser(__doc__)))
