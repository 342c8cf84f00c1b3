"""What the tests of the projects share: small models with random weights, two images, short runs on generated data."""
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from lowrank_d2.data import mini
from lowrank_d2.engine.defaults import load_config, run_tool
from lowrank_d2.engine.run import main, train_parser


def configured(file: Path, small: Mapping[str, Any], changes: Optional[Mapping[str, Any]] = None) -> CfgNode:
    """A configuration file made small by some keys, with others changed."""
    return load_config(str(file), [str(word) for pair in {**small, **(changes or {})}.items() for word in pair])


def randomised(model: nn.Module, keep: Collection[str] = (), scale: float = 0.1) -> nn.Module:
    """Norms, biases, zeros and all else but `keep` far enough from their start for every mistake to show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in keep:
                parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def random_model(cfg: CfgNode, **options: Any) -> nn.Module:
    """The model of a configuration with random weights, none of them zero, in evaluation mode."""
    torch.manual_seed(0)
    return randomised(build_model(cfg), **options)


def boxes_in(height: int, width: int, count: int) -> Boxes:
    """Random boxes whose upper left corner lies in the upper left quarter of an image."""
    low = torch.rand(count, 2) * torch.tensor([width / 2, height / 2])
    return Boxes(torch.cat((low, low + 5 + 20 * torch.rand(count, 2)), dim=1))


def two_images(classes: Sequence[int]) -> list[dict[str, Any]]:
    """Two images of different sizes, the first with boxes of these classes, the second without any."""
    torch.manual_seed(1)
    inputs = []
    for (height, width), labels in (((64, 96), classes), ((48, 112), ())):
        instances = Instances((height, width))
        instances.gt_boxes = boxes_in(height, width, len(labels))
        instances.gt_classes = torch.tensor(labels, dtype=torch.int64)
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        inputs.append({"image": image, "height": 2 * height, "width": width, "instances": instances})
    return inputs


def generated(tmp_path_factory, train: int) -> Path:
    """A tree of `train` + 4 images, to be used as $DETECTRON2_DATASETS."""
    root = tmp_path_factory.mktemp("datasets")
    mini.build(root, "source", train=train, val=4, height=64)
    return root


def trained(files: Sequence[str], output: Path, *words: str) -> list[dict[str, Any]]:
    """The lines of metrics.json of a run of tools/train_net.py, one of every iteration."""
    assert run_tool(main, train_parser(""), ["--config-file", *files, *words, "OUTPUT_DIR", str(output)]) == 0
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(len(lines)))
    return lines
