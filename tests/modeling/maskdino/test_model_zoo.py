"""The model zoo of the README: every cell has a command, and every composition of configs is what it says."""
import re
import shlex
from pathlib import Path

import pytest

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report

ROOT = Path(__file__).resolve().parents[3]
BACKBONES = {"maskdino_R50": ("build_resnet_backbone", 4), "maskdino_SwinL": ("D2SwinTransformer", 5)}
CLASSES = {"ndd20": 1, "zerowaste": 4, "wixray": 12, "cityscapes": 8}
TEST_SET = {name: f"{name}_instance_val" if name == "cityscapes" else f"{name}_val" for name in CLASSES}
SWIN_L = {
    "full_head": 27_557_413, "decoder": 14_729_189, "embeddings": 330_245,
    "adapters_1": 1_124_357, "adapters_2": 1_918_469, "adapters_3": 2_712_581, "adapters_4": 3_506_693,
    "lora_r2": 381_317, "lora_r4": 432_389, "lora_r8": 534_533, "lora_r16": 738_821,
}


def zoo():
    """The README's section."""
    return (ROOT / "README.md").read_text(encoding="utf-8").split("\n## Model zoo\n")[1].split("\n## ")[0]


def cells():
    """{(data set, method): the paper's AP} of the table."""
    lines = [line.strip("|").split("|") for line in zoo().splitlines() if line.startswith("|")]
    lines = [[cell.strip(" `") for cell in line] for line in lines]
    start = next(i for i, line in enumerate(lines) if line[0] == "METHOD")
    columns, rows = lines[start][1:5], lines[start + 2 :]
    return {(name, row[0]): float(ap) for row in rows for name, ap in zip(columns, row[1:5]) if ap != "–"}


def commands():
    """{(data set, method): (config files, KEY VALUE words)} of the list."""
    found = {}
    for line in re.findall(r"^python tools/train_net.py .*$", zoo(), re.MULTILINE):
        words = shlex.split(line)[3:]
        files = [word for word in words if word.endswith(".yaml")]
        assert words[: len(files)] == files and shlex.split(line)[2] == "--config-file"
        found[Path(files[1]).stem, Path(files[2]).stem] = (files, words[len(files) :])
    return found


def test_every_cell_has_its_command_and_no_two_share_a_folder():
    assert len(cells()) == 46 and commands().keys() == cells().keys()
    outputs = [dict(zip(words[::2], words[1::2]))["OUTPUT_DIR"] for _, words in commands().values()]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("dataset, method", sorted(commands()))
def test_the_command_of_a_cell_loads(dataset, method):
    files, words = commands()[dataset, method]
    cfg = load_config([str(ROOT / file) for file in files], words)
    model = "maskdino_SwinL" if dataset == "cityscapes" else "maskdino_R50"
    assert Path(files[0]).stem == model and cfg.MODEL.BACKBONE.NAME == BACKBONES[model][0]
    assert cfg.DATASETS.TEST == (TEST_SET[dataset],) and cfg.MODEL.WEIGHTS in ("$R50", "$SWINL")
    kind, number = re.fullmatch(r"(\w+?)(?:_r?(\d+))?", method).groups()
    peft = cfg.MODEL.PEFT
    if kind in ("full_head", "decoder", "embeddings"):
        assert (peft.METHODS, peft.TRAIN) == ([], kind)
    elif kind == "lora":
        assert (peft.METHODS, peft.TRAIN, peft.LORA.RANK) == (["lora"], "embeddings", int(number))
        assert peft.LORA.ALPHA in (None, int(number))  # alpha = rank
    else:
        residual = {"adapter_kappa": "kappa", "adapter_lambda": "lambda", "adapters": "kappa+lambda"}[kind]
        assert (peft.METHODS, peft.TRAIN) == (["adapter"], "embeddings")
        assert (peft.ADAPTER.REPEATS, peft.ADAPTER.RESIDUAL) == (int(number or 1), residual)


@pytest.mark.parametrize("model", BACKBONES)
@pytest.mark.parametrize("dataset", CLASSES)
def test_all_methods_compose_with_every_data_set_and_backbone(dataset, model):
    for method in sorted((ROOT / "configs/methods").glob("*.yaml")):
        files = [f"{ROOT}/configs/mask_dino/{model}.yaml", f"{ROOT}/configs/datasets/{dataset}.yaml", str(method)]
        cfg = load_config(files)
        assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == CLASSES[dataset] and cfg.DATASETS.TEST == (TEST_SET[dataset],)
        assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS) == BACKBONES[model]


@pytest.mark.parametrize("dataset", CLASSES)
def test_a_composition_counts_what_its_classes_add(dataset):
    names = ("mask_dino/maskdino_R50", f"datasets/{dataset}", "methods/lora_r8")
    files = [f"{ROOT}/configs/{name}.yaml" for name in names]
    counts = report(load_config(files, ["MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "False"]))
    more = CLASSES[dataset] - 1
    assert (counts.base, counts.trainable) == (52_017_477 + 513 * more, 526_853 + 257 * more)


@pytest.mark.parametrize("method", SWIN_L)
def test_the_counts_of_swin_l(method):
    files = [f"{ROOT}/configs/mask_dino/maskdino_SwinL.yaml", f"{ROOT}/configs/methods/{method}.yaml"]
    one_class = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1", "MODEL.PEFT.TRAIN_LABEL_EMBEDDING", "False"]
    counts = report(load_config(files, one_class))
    assert (counts.base, counts.trainable) == (222_758_617, SWIN_L[method])
