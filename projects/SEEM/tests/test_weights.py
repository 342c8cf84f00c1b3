"""Published names and ours, and what a checkpoint must contain."""
import logging

import pytest
import torch
from detectron2.modeling import build_model

from lowrank_d2.engine.weight_files import convert_tuned, convert_weights
from lowrank_d2.errors import CheckpointError
from projects.SEEM.tests.models import CONFIGS
from seem.weights import from_upstream, to_upstream

UNUSED = {
    "dilation_kernel": torch.ones(1, 1, 3, 3),
    "criterion.empty_weight": torch.ones(4),
    "sem_seg_head.predictor.pn_indicator.weight": torch.ones(2, 32),
}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("changes", [
    {}, {"MODEL.PEFT.METHODS": "['lora','adapter']", "MODEL.PEFT.TRAIN": "embeddings", "MODEL.PEFT.ADAPTER.REPEATS": 2},
])
def test_names_go_there_and_back(small_model, changes):
    ours = small_model(changes).state_dict()
    theirs = to_upstream(ours)
    assert all(name.startswith(("backbone.", "sem_seg_head.")) for name in theirs)
    assert equal(from_upstream(theirs), ours)


def test_some_names_of_the_original(small_model):
    theirs = to_upstream(small_model().state_dict())
    predictor, decoder = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
    assert theirs[predictor + "transformer_cross_attention_layers.3.multihead_attn.in_proj_weight"].shape == (96, 32)
    assert theirs[predictor + "lang_encoder.lang_encoder.resblocks.1.attn.in_proj_bias"].shape == (48,)
    assert theirs[decoder + "layer_4.norm.weight"].shape == (32,) and theirs[decoder + "adapter_1.weight"].shape == (32, 8, 1, 1)
    assert theirs[predictor + "lang_encoder.logit_scale"].shape == ()


def test_a_part_of_an_attention_cannot_be_converted(small_model):
    ours = small_model().state_dict()
    del ours["decoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(CheckpointError, match="layers.1.self_attn.in_proj_bias needs q, k and v, but only q, v"):
        to_upstream(ours)


def test_a_published_file_loads_and_names_what_it_does_not_need(small_model, caplog):
    source, model = small_model(), small_model()
    theirs = to_upstream({name: 2 * tensor for name, tensor in source.state_dict().items()})
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(theirs | UNUSED)
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(model.decoder.class_embed, 2 * source.decoder.class_embed)
    lines = [record.getMessage() for record in caplog.records if "Not used" in record.getMessage()]
    assert len(lines) == 1 and all(name in lines[0] for name in UNUSED)


@pytest.mark.parametrize("change, part", [
    (lambda state: {"stem.weight": torch.ones(1)}, "None of the 1 tensors"),
    (lambda state: state | {"decoder.norm.weight": torch.ones(3)}, r"decoder.norm.weight \(3,\) instead of \(32,\)"),
    (lambda state: state | {"decoder.layers.9.ffn.norm.bias": torch.ones(3)}, "no place for 1 tensors.*layers.9"),
    (lambda state: {n: t for n, t in state.items() if n != "text.encoder.ln_final.bias"}, "a part of the text: missing"),
    (lambda state: state | {"decoder.layers.0.self_attn.q_proj.lora_A": torch.ones(1, 32)}, "no place for 1 tensors"),
])
def test_files_of_other_models_are_refused(small_model, change, part):
    model = small_model()
    with pytest.raises(CheckpointError, match=part):
        model.load_state_dict(change(model.state_dict()))


def test_a_backbone_alone_is_a_start(small_model, caplog):
    model = small_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("backbone.")}
    with caplog.at_level(logging.WARNING):
        model.load_state_dict(state, strict=False)
    assert "has no pixel decoder" in caplog.text and "has no decoder" in caplog.text


def test_the_authors_packed_lora_is_lora_on_q_k_and_v(small_model):
    """Against the packed weight itself: W + B A on the 96 rows of q, k and v, with one A."""
    torch.manual_seed(5)
    packed = small_model({
        "MODEL.PEFT.METHODS": "['lora']", "MODEL.PEFT.LORA.RANK": 3, "MODEL.PEFT.LORA.ALPHA": 6.0,
        "MODEL.PEFT.LORA.TARGETS": "['self_attn.q_proj','self_attn.k_proj','self_attn.v_proj']", "MODEL.PEFT.TRAIN": "none",
    })
    plain = small_model()
    base = to_upstream(plain.state_dict())
    layers = [f"sem_seg_head.pixel_decoder.transformer.encoder.layers.{i}.self_attn" for i in range(2)]
    layers += [f"sem_seg_head.predictor.transformer_self_attention_layers.{i}.self_attn" for i in range(4)]
    pairs = {layer: (torch.randn(3, 32), torch.randn(96, 3)) for layer in layers}
    tuned = {f"{layer}.qv_lora_{letter}": x for layer, pair in pairs.items() for letter, x in zip("AB", pair)}
    packed.load_state_dict(base | tuned)
    for layer, (a, b) in pairs.items():
        base[f"{layer}.in_proj_weight"] = base[f"{layer}.in_proj_weight"] + 6 / 3 * b @ a
    plain.load_state_dict(base)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(packed.predict(images).last.logits, plain.predict(images).last.logits, rtol=1e-4, atol=1e-4)


def test_a_tuned_file_of_the_authors_becomes_a_delta(small_model, small_config, tmp_path):
    torch.manual_seed(6)
    base = small_model()
    torch.save({"model": base.state_dict()}, tmp_path / "base.pth")
    layers = [f"pixel_decoder.transformer.encoder.layers.{i}.self_attn" for i in range(2)]
    layers += [f"predictor.transformer_self_attention_layers.{i}.self_attn" for i in range(4)]
    layers += [f"predictor.transformer_cross_attention_layers.{i}.multihead_attn" for i in range(4)]
    tuned = {f"sem_seg_head.{layer}.qv_lora_A": torch.randn(8, 32) for layer in layers}
    tuned |= {f"sem_seg_head.{layer}.qv_lora_B": torch.randn(96, 8) for layer in layers}
    heads = {name: x for name, x in base.state_dict().items() if name.startswith(("decoder.class_embed", "decoder.mask_embed"))}
    torch.save({"model": tuned | to_upstream({name: x + 0.1 for name, x in heads.items()})}, tmp_path / "tuned.pth")

    cfg = small_config({"MODEL.WEIGHTS": tmp_path / "base.pth", "MODEL.PEFT.DELTA_DTYPE": "float32"})
    cfg.merge_from_file(str(CONFIGS / "lora_packed_r8.yaml"))
    header = convert_tuned(cfg, tmp_path / "tuned.pth", tmp_path / "delta.safetensors", ["ball", "box", "star"])
    assert len(header.tensors) == 10 * 6 + len(heads)
    delta = small_config({"MODEL.WEIGHTS": tmp_path / "base.pth", "MODEL.PEFT.DELTA": tmp_path / "delta.safetensors"})
    shipped = build_model(delta).eval()
    shipped.load_state_dict(base.state_dict(), strict=False)
    whole = to_upstream(base.state_dict()) | to_upstream({name: x + 0.1 for name, x in heads.items()})
    for layer in layers:
        update = tuned[f"sem_seg_head.{layer}.qv_lora_B"] @ tuned[f"sem_seg_head.{layer}.qv_lora_A"]
        whole[f"sem_seg_head.{layer}.in_proj_weight"] = whole[f"sem_seg_head.{layer}.in_proj_weight"] + update
    plain = small_model()
    plain.load_state_dict(whole)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(shipped.predict(images).last.logits, plain.predict(images).last.logits, rtol=1e-3, atol=1e-3)


def test_the_tool_writes_the_originals_names(small_model, tmp_path):
    ours = small_model().state_dict()
    torch.save({"model": ours}, tmp_path / "ours.pth")
    assert convert_weights("seem", tmp_path / "ours.pth", tmp_path / "theirs.pth") == len(to_upstream(ours))
    assert equal(torch.load(tmp_path / "theirs.pth")["model"], to_upstream(ours))
    with pytest.raises(CheckpointError, match="has the original's names already"):
        convert_weights("seem", tmp_path / "theirs.pth", tmp_path / "again.pth")


@pytest.mark.parametrize("method, count", [("lora", 40), ("loha", 80), ("lokr", 40), ("adapter", 40)])
def test_what_is_adapted_has_no_name_there(small_model, tmp_path, method, count):
    changes = {"MODEL.PEFT.METHODS": f"['{method}']", "MODEL.PEFT.TRAIN": "embeddings"}
    torch.save({"model": small_model(changes).state_dict()}, tmp_path / "run.pth")
    with pytest.raises(CheckpointError, match=f"run.pth is adapted: the original has no place for {count} tensors.*tools/merge.py"):
        convert_weights("seem", tmp_path / "run.pth", tmp_path / "theirs.pth")
    assert not (tmp_path / "theirs.pth").exists()
