from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.errors import CheckpointError, ConfigError
from lowrank_d2.modeling.maskdino.fork import ADAPTER_MODULES, load_tuned, translate_fork
from lowrank_d2.modeling.maskdino.weights import from_upstream, to_upstream
from lowrank_d2.peft import save_delta
from lowrank_d2.peft.delta import read_delta

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "golden" / "maskdino_adapter_code"
EMBEDDINGS = ["mask_embed", "class_embed", "bbox_embed"]


def test_adapters_keep_their_numbers_and_their_real_start(tiny_config):
    cfg = tiny_config({"USE_ADAPTERS": True, "ADAPTER_NUM": 3, "ADAPTER_REDUCTION": 8})
    peft = translate_fork(cfg).MODEL.PEFT
    assert peft.METHODS == ["adapter"]
    assert (peft.ADAPTER.REPEATS, peft.ADAPTER.REDUCTION) == (3, 8)
    assert (peft.ADAPTER.RESIDUAL, peft.ADAPTER.INIT) == ("kappa+lambda", "xavier")
    assert (peft.TRAIN, peft.TRAIN_LABEL_EMBEDDING) == ("none", False)


@pytest.mark.parametrize(
    "names, train, label_embedding",
    [
        (EMBEDDINGS, "embeddings", False),
        (EMBEDDINGS + ["label_enc"], "embeddings", True),
        (EMBEDDINGS + sorted(ADAPTER_MODULES), "embeddings", False),
        (["predictor"], "decoder", True),
        (["sem_seg_head"], "full_head", True),
        (["sem_seg_head", "backbone"], "all", True),
    ],
)
def test_what_trains(tiny_config, names, train, label_embedding):
    peft = translate_fork(tiny_config({"SOLVER.IGNORE_FIX": names})).MODEL.PEFT
    assert (peft.METHODS, peft.TRAIN, peft.TRAIN_LABEL_EMBEDDING) == ([], train, label_embedding)


def test_a_set_without_a_word_names_the_nearest(tiny_config):
    with pytest.raises(ConfigError, match=r"\['mask_embed', 'class_embed'\].*'embeddings'"):
        translate_fork(tiny_config({"SOLVER.IGNORE_FIX": ["mask_embed", "class_embed"]}))


def test_lora_is_refused(tiny_config):
    with pytest.raises(ConfigError, match="share a pair of matrices"):
        translate_fork(tiny_config({"USE_LORA": True}))


def test_without_the_forks_keys_nothing_changes(tiny_config):
    cfg = tiny_config()
    assert translate_fork(cfg) is cfg


@pytest.mark.golden
def test_dumps_of_the_forks_runs_load():
    if not GOLDEN.is_dir():
        pytest.skip(f"no golden data at {GOLDEN}")
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(str(GOLDEN / "config_adapters_run.yaml"))
    peft = translate_fork(cfg).MODEL.PEFT
    assert (peft.METHODS, peft.ADAPTER.REPEATS, peft.TRAIN) == (["adapter"], 2, "embeddings")
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(str(GOLDEN / "config_lora_run.yaml"))
    with pytest.raises(ConfigError):
        translate_fork(cfg)


def tuned_run(tiny_model, repeats):
    """A model of the fork's adapter run, and what the fork would save of it."""
    trained = ["mask_embed", "class_embed", "bbox_embed", "decoder_self_attn_adapter"]
    model = tiny_model({"USE_ADAPTERS": True, "ADAPTER_NUM": repeats, "SOLVER.IGNORE_FIX": trained})
    return model, to_upstream({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})


def test_a_tuned_checkpoint_becomes_a_delta(tiny_model, tmp_path):
    model, checkpoint = tuned_run(tiny_model, 2)
    assert sum("adapter" in name for name in checkpoint) == 2 * 4 * (1 + 2 * 2)
    before = model.backbone.stem.conv1.weight.clone()
    checkpoint = {name: tensor + 1 for name, tensor in checkpoint.items()}
    load_tuned(model, checkpoint)
    header = save_delta(model, tmp_path / "fork.safetensors", class_names=list("abcde"))
    _, stored = read_delta(tmp_path / "fork.safetensors")
    # A delta also has the label embedding, which belongs to its classes.
    assert stored.keys() == from_upstream(checkpoint).keys() | {"decoder.label_embedding.weight"}
    assert header.train == "embeddings"
    assert all(torch.equal(stored[name], tensor) for name, tensor in from_upstream(checkpoint).items())
    assert torch.equal(model.backbone.stem.conv1.weight, before)


def test_a_tuned_checkpoint_of_another_run_is_refused(tiny_model):
    model, _ = tuned_run(tiny_model, 2)
    _, other = tuned_run(tiny_model, 1)
    before = model.decoder.heads.class_embed.weight.clone()
    with pytest.raises(CheckpointError, match="20 tensors .* absent in the file"):
        load_tuned(model, {name: tensor + 1 for name, tensor in other.items()})
    assert torch.equal(model.decoder.heads.class_embed.weight, before)
