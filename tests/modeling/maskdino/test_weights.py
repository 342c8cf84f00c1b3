import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from safetensors.torch import save_file

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling.maskdino.weights import CLASS_DEPENDENT, from_upstream, is_upstream, to_upstream

LAYER = "sem_seg_head.predictor.decoder.layers.0"


def filled(model):
    """The model's state dict with other values."""
    return {name: torch.randn_like(x) if x.is_floating_point() else x for name, x in model.state_dict().items()}


def test_every_name_goes_to_the_original_and_back(tiny_model):
    state = filled(tiny_model())
    upstream = to_upstream(state)
    assert all(name.startswith(("backbone.", "sem_seg_head.", "criterion.")) for name in upstream)
    back = from_upstream(upstream)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_the_box_head_has_its_aliases(tiny_model):
    upstream = to_upstream(filled(tiny_model()))
    first = "sem_seg_head.predictor.{}.layers.1.bias"
    copies = [upstream[first.format(name)] for name in ("_bbox_embed", "bbox_embed.0", "decoder.bbox_embed.1")]
    assert torch.equal(copies[0], copies[1]) and torch.equal(copies[0], copies[2])
    assert sum("bbox_embed" in name for name in upstream) == 6 * (1 + 2 * 2)  # one head, two layers, two lists
    assert upstream["criterion.empty_weight"].tolist() == pytest.approx([1.0] * 5 + [0.1])


def test_q_k_v_become_one_matrix_also_for_gradients():
    parts = {f"decoder.layers.0.self_attn.{x}_proj.weight": torch.full((2, 2), i) for i, x in enumerate("kqv")}
    packed = to_upstream(parts)
    assert list(packed) == [f"{LAYER}.self_attn.in_proj_weight"]
    assert packed[f"{LAYER}.self_attn.in_proj_weight"][:, 0].tolist() == [1, 1, 0, 0, 2, 2]
    with pytest.raises(CheckpointError, match="only \\['q', 'v'\\]"):
        to_upstream({name: x for name, x in parts.items() if "k_proj" not in name})


def test_norms_change_their_numbers():
    names = {
        "decoder.layers.0.self_attn.norm.bias": f"{LAYER}.norm2.bias",
        "decoder.layers.0.cross_attn.norm.bias": f"{LAYER}.norm1.bias",
        "decoder.layers.0.ffn.norm.bias": f"{LAYER}.norm3.bias",
        "pixel_decoder.lateral.0.norm.bias": "sem_seg_head.pixel_decoder.adapter_1.norm.bias",
    }
    for ours, theirs in names.items():
        assert list(to_upstream({ours: torch.zeros(1)})) == [theirs]
        assert list(from_upstream({theirs: torch.zeros(1)})) == [ours]


def test_the_forks_adapters_are_ours():
    name = f"{LAYER}.decoder_cross_attn_adapter.adapters.1.adapter_down.0.weight"
    ours = "decoder.layers.0.cross_attn.adapter.layers.1.down.weight"
    assert list(from_upstream({name: torch.zeros(1)})) == [ours]
    assert list(to_upstream({ours: torch.zeros(1)})) == [name]


def test_the_forks_lora_is_refused():
    with pytest.raises(CheckpointError, match="share one low-rank matrix"):
        from_upstream({f"{LAYER}.self_attn.qv_lora_A": torch.zeros(1)})


def test_low_rank_tensors_have_no_upstream_name():
    with pytest.raises(CheckpointError, match="Merge"):
        to_upstream({"decoder.layers.0.cross_attn.value_proj.lora_A": torch.zeros(1)})


def test_copies_that_differ_are_refused():
    copies = {f"sem_seg_head.predictor.bbox_embed.{i}.layers.0.bias": torch.full((2,), float(i)) for i in range(2)}
    with pytest.raises(CheckpointError, match="copies"):
        from_upstream(copies)


def test_whose_names_they_are(tiny_model):
    state = tiny_model().state_dict()
    assert not is_upstream(state) and is_upstream(to_upstream(state))


def test_a_checkpoint_of_the_original_loads_without_a_manual_step(tiny_model, tmp_path, caplog):
    state = filled(tiny_model())
    torch.save({"model": to_upstream(state)}, tmp_path / "upstream.pth")
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "upstream.pth"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert "not found" not in caplog.text and "Initialised" not in caplog.text


def test_other_classes_are_initialised_anew_and_named(tiny_model, tmp_path, caplog):
    state = filled(tiny_model({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}))
    model = tiny_model()
    before = model.decoder.heads.class_embed.weight.clone()
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(to_upstream(state), strict=False)
    names = ("decoder.heads.class_embed.weight", "decoder.heads.class_embed.bias", "decoder.label_embedding.weight")
    assert all(name in caplog.text for name in names)
    assert torch.equal(model.decoder.heads.class_embed.weight, before)
    assert torch.equal(model.decoder.heads.norm.weight, state["decoder.heads.norm.weight"])


@pytest.mark.parametrize("ending", ["pth", "bare.pth", "safetensors", "pkl"])
@pytest.mark.parametrize("classes, warnings", [(5, 0), (3, 1)])
def test_every_format_loads_and_what_stays_random_is_listed_once(
    tiny_model, tmp_path, caplog, ending, classes, warnings
):
    state = filled(tiny_model())
    upstream = {name: x.clone() for name, x in to_upstream(state).items()}
    path = tmp_path / f"upstream.{ending}"
    if ending == "safetensors":
        save_file(upstream, path)
    elif ending == "pkl":
        arrays = {name: x.numpy() for name, x in upstream.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    else:
        torch.save(upstream if ending == "bare.pth" else {"model": upstream}, path)
    model = tiny_model({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(path))
    assert len(caplog.records) == warnings
    for name, value in model.state_dict().items():
        anew = warnings and name in CLASS_DEPENDENT
        assert torch.equal(value, before[name] if anew else state[name]) and (not anew or caplog.text.count(name) == 1)


def test_unknown_tensors_are_listed_once_under_the_names_of_the_file(tiny_model, tmp_path, caplog):
    upstream = to_upstream(filled(tiny_model()))
    torch.save({**upstream, "sem_seg_head.extra.weight": torch.zeros(2)}, tmp_path / "file.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(tiny_model()).load(str(tmp_path / "file.pth"))
    assert len(caplog.records) == 1 and caplog.text.count("sem_seg_head.extra.weight") == 1


def test_a_strict_load_does_not_pass_over_other_classes(tiny_model):
    state = to_upstream(filled(tiny_model()))
    with pytest.raises(RuntimeError, match="class_embed"):
        tiny_model({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}).load_state_dict(state)


def test_a_backbone_alone_is_one_warning(tiny_model, tmp_path, caplog):
    model = tiny_model()
    backbone = {name: x for name, x in filled(model).items() if name.startswith("backbone.")}
    with caplog.at_level(logging.WARNING):
        torch.save(backbone, tmp_path / "backbone.pth")
        DetectionCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert "no pixel decoder and no decoder" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: {"fc.weight": torch.zeros(1)}, "None of the 1 tensors"),
        (lambda state: {}, "None of the 0 tensors"),
        (lambda state: {k: v for k, v in state.items() if "ref_point_head" not in k}, "only a part of the decoder"),
        (lambda state: {k: v for k, v in state.items() if "level_embed" not in k}, "only a part of the pixel decoder"),
        (lambda state: {k: v for k, v in state.items() if "res3.1" not in k}, "only a part of the backbone"),
        (lambda state: {**state, "pixel_decoder.level_embed": torch.zeros(3, 32)}, r"\(3, 32\) instead of \(4, 32\)"),
    ],
)
def test_what_would_leave_the_model_half_loaded_is_refused(tiny_model, spoil, message):
    model = tiny_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        model.load_state_dict(spoil(filled(model)), strict=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.golden
@pytest.mark.parametrize("name", ["R50", "SwinL"])
def test_the_published_checkpoints_names_and_shapes_are_the_models(name):
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    from lowrank_d2.config import add_lowrank_config

    folder = Path(__file__).resolve().parents[4] / "shared" / "golden" / "maskdino"
    if not folder.is_dir():
        pytest.skip(f"no golden data at {folder}")
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_file(str(folder / f"config_maskdino_{name}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    upstream = to_upstream(state)
    specs = {key: (list(x.shape), str(x.dtype).removeprefix("torch.")) for key, x in upstream.items()}
    keys = json.loads((folder / f"keys_maskdino_{name}.json").read_text())
    assert specs == {key: (spec["shape"], spec["dtype"]) for key, spec in keys.items()}
    assert from_upstream(upstream).keys() == state.keys()
