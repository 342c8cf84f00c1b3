"""A delta named by an address of Detectron2's PathManager, wherever a delta is named."""
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultPredictor
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.own_data import take_classes
from lowrank_d2.engine.predict import Predictor
from lowrank_d2.engine.trainer import LowRankTrainer
from lowrank_d2.engine.weight_files import merge_delta
from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.modeling.delta_file import local_delta, with_delta, with_local_delta
from lowrank_d2.peft import save_delta

CONFIG = "tests/engine/small_maskdino.yaml"
DELTA = "shelf://delta.safetensors"


@pytest.fixture
def shelf(tmp_path, request):
    """Serves shelf://NAME from a folder that holds a base and a delta of it with two classes."""
    class Shelf(PathHandler):
        def _get_supported_prefixes(self):
            return ["shelf://"]

        def _get_local_path(self, path, force=False, **kwargs):
            return str(tmp_path / path.removeprefix("shelf://"))

    PathManager.register_handler(Shelf(), allow_override=True)
    config = str(request.config.rootpath / CONFIG)
    torch.manual_seed(0)
    model = LowRankTrainer.build_model(load_config(config, ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]))
    base = LowRankTrainer.build_model(load_config(config, ["MODEL.PEFT.METHODS", "[]"]))
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    own = {name: value for name, value in base.state_dict().items() if name not in model.class_dependent}
    model.load_state_dict(own, strict=False)
    torch.nn.init.normal_(model.decoder.layers[0].self_attn.q_proj.lora_B)
    save_delta(model, tmp_path / "delta.safetensors", class_names=["ant", "bee"])
    return config, ["MODEL.WEIGHTS", str(tmp_path / "base.pth"), "MODEL.PEFT.DELTA", DELTA]


def test_every_reader_of_a_delta_takes_an_address(shelf, tmp_path):
    config, words = shelf
    cfg = load_config(config, words)
    predictor = Predictor(cfg)
    assert predictor.class_names == ["ant", "bee"]
    assert merge_delta(cfg, DELTA, tmp_path / "merged.safetensors").num_classes == 2
    MetadataCatalog.get("ants").set(thing_classes=["ant", "wasp"])
    cfg.DATASETS.TRAIN = ("ants",)
    with pytest.raises(DeltaError, match=r"shelf://.*only in the delta \['bee'\].*\['wasp'\]"):
        take_classes(cfg, [])


def test_plain_default_predictor(shelf):
    config, words = shelf
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(config)
    cfg.merge_from_list(words)
    model = DefaultPredictor(cfg).model
    assert model.decoder.num_classes == 2 and model.decoder.layers[0].self_attn.q_proj.lora_B.abs().sum() > 0
    assert cfg.MODEL.PEFT.DELTA == DELTA


def test_paths_stay_as_they_are():
    cfg = load_config([], ["MODEL.PEFT.DELTA", "some/delta.safetensors"])
    assert with_local_delta(cfg) is cfg and local_delta("some/delta.safetensors") == "some/delta.safetensors"
    with pytest.raises(DeltaError, match="http://127.0.0.1:9/d.safetensors cannot be fetched"):
        local_delta("http://127.0.0.1:9/d.safetensors")


def test_a_delta_says_methods_and_classes(shelf, tmp_path):
    config, words = shelf
    cfg, peft = with_delta(load_config(config, words))
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.CLASS_NAMES) == (2, ["ant", "bee"])
    assert peft.delta == cfg.MODEL.PEFT.DELTA == str(tmp_path / "delta.safetensors")
    assert [method.name for method in peft.methods] == ["lora"]
    named, _ = with_delta(load_config(config, [*words, "MODEL.CLASS_NAMES", "['wasp', 'fly']"]))
    assert named.MODEL.CLASS_NAMES == ["wasp", "fly"]


def test_a_delta_without_a_base_is_refused(shelf):
    config, words = shelf
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS is empty: a delta holds only what was tuned"):
        with_delta(load_config(config, ["MODEL.WEIGHTS", "", *words[2:]]))
