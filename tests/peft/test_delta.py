import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lowrank_d2.errors import ConfigError, DeltaError, OutputError
from lowrank_d2.peft import Adapter, DeltaSet, LoRA, inject, load_delta, read_header, save_delta
from lowrank_d2.peft.delta import MARKER
from lowrank_d2.peft.trainable import added_names

METHODS = {"lora": [LoRA(rank=2)], "adapter": [Adapter(2)], "both": [LoRA(rank=1), Adapter()], "none": []}
NAMES = ["ant", "bee", "cat"]


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def base(make_toy):
    return state_of(make_toy(seed=11))


@pytest.fixture
def adapted(make_toy, base):
    """adapted(methods=[LoRA(rank=2)], train="embeddings", seed=0, base=base, classes=3, labels=True)"""

    def make(methods=METHODS["lora"], train="embeddings", seed=0, base=base, classes=3, labels=True):
        return inject(make_toy(classes, seed, base), methods, train, labels).eval()

    return make


@pytest.mark.parametrize("train", ["none", "embeddings", "decoder", "full_head", "all"])
@pytest.mark.parametrize("methods", METHODS)
def test_round_trip(adapted, train_steps, images, tmp_path, methods, train):
    model = train_steps(adapted(METHODS[methods], train))
    path = tmp_path / "delta.safetensors"
    save_delta(model, path, class_names=NAMES)
    other = adapted(METHODS[methods], train, seed=5)
    assert not torch.equal(other(images), model(images))
    load_delta(other, path)
    assert same(other.state_dict(), model.state_dict()) or train == "all"
    assert torch.equal(other(images), model(images))


def test_the_file_holds_what_trained_and_nothing_else(adapted, train_steps, tmp_path):
    model = train_steps(adapted())
    path = tmp_path / "delta.safetensors"
    written = save_delta(model, path, class_names=NAMES, extra={"iteration": 3, "metrics": {"AP": 1.5}})
    with safe_open(str(path), framework="pt") as file:
        stored = set(file.keys())
    trained = {"class_embed.weight", "class_embed.bias", "label_embedding.weight"}
    assert stored == added_names(model) | trained | {MARKER}
    header = read_header(path)
    assert header == written
    assert (header.class_names, header.num_classes, header.meta_architecture) == (tuple(NAMES), 3, "Toy")
    assert (header.methods, header.train, header.train_label_embedding) == ((LoRA(rank=2),), "embeddings", True)
    assert header.extra == {"iteration": 3, "metrics": {"AP": 1.5}}
    assert set(header.tensors) == stored - {MARKER}


def test_half_precision_halves_the_file_and_spares_what_it_cannot_hold(adapted, make_toy, train_steps, base, tmp_path):
    model = adapted()
    train_steps(model)
    name = next(name for name in added_names(model) if name.endswith("lora_B"))
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = 1e6
    save_delta(model, tmp_path / "whole.safetensors", class_names=NAMES)
    model.peft_config = dataclasses.replace(model.peft_config, delta_dtype="float16")
    header = save_delta(model, tmp_path / "half.safetensors", class_names=NAMES)
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        dtypes = {key: file.get_tensor(key).dtype for key in header.tensors}
    assert dtypes.pop(name) == torch.float32 and set(dtypes.values()) == {torch.float16}
    read = inject(make_toy(3, 0, base), METHODS["lora"], "embeddings")
    load_delta(read, tmp_path / "half.safetensors")
    for key, value in read.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=1e-3, atol=1e-7)
        assert value.dtype == model.state_dict()[key].dtype


def test_the_label_embedding_is_in_the_file_though_it_is_frozen(adapted, tmp_path):
    model = adapted(train="none", labels=False)
    header = save_delta(model, tmp_path / "d.safetensors", class_names=NAMES)
    assert {"label_embedding.weight", "class_embed.weight", "class_embed.bias"} <= set(header.tensors)


def test_moving_statistics_of_what_trains_are_in_the_file(adapted, train_steps, tmp_path):
    header = save_delta(train_steps(adapted(train="all")), tmp_path / "d.safetensors", class_names=NAMES)
    assert {"backbone.1.running_mean", "backbone.1.running_var"} <= set(header.tensors)


def test_the_base_is_recognised_whatever_trained_and_however_many_classes(adapted, make_toy, train_steps, tmp_path):
    model = adapted()
    before = save_delta(model, tmp_path / "a.safetensors", class_names=NAMES).base
    assert save_delta(train_steps(model), tmp_path / "b.safetensors", class_names=NAMES).base == before
    wider = make_toy(classes=5, seed=3)
    base = {name: tensor for name, tensor in make_toy(seed=11).state_dict().items() if name.split(".")[0] not in
            ("class_embed", "label_embedding", "class_weight")}
    wider.load_state_dict(base, strict=False)
    inject(wider, METHODS["lora"], "embeddings")
    assert save_delta(wider, tmp_path / "c.safetensors", class_names=list("abcde")).base == before


@pytest.mark.parametrize("name", ["backbone.0.weight", "decoder.1.norm.bias", "backbone.1.running_var"])
def test_a_base_that_differs_in_one_number_is_another(adapted, base, tmp_path, name):
    path = tmp_path / "d.safetensors"
    theirs = save_delta(adapted(), path, class_names=NAMES).base
    base[name].view(-1)[-1] += 1e-4
    other = adapted(base=base, seed=4)
    before = state_of(other)
    with pytest.raises(DeltaError, match="trained on another base") as caught:
        load_delta(other, path)
    assert f"The first tensor that differs is {name}." in str(caught.value) and theirs.fingerprint in str(caught.value)
    assert str(caught.value).count("tensors, ") == 2
    assert same(other.state_dict(), before)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"methods": [LoRA(rank=4)]}, "LORA.RANK 2, this model has 4"),
        ({"methods": [LoRA(rank=2, alpha=8)]}, "LORA.ALPHA 2, this model has 8"),
        ({"methods": [Adapter()]}, r"METHODS \['lora'\], this model has \['adapter'\]"),
        ({"methods": []}, r"METHODS \['lora'\], this model has \[\]"),
        ({"methods": [LoRA(rank=2, targets=("qkv",))]}, "lora_A is in the model, not in the file"),
    ],
)
def test_another_method_rank_alpha_or_target_is_refused(adapted, tmp_path, options, words):
    path = tmp_path / "d.safetensors"
    save_delta(adapted(), path, class_names=NAMES)
    other = adapted(**options)
    before = state_of(other)
    with pytest.raises(DeltaError, match=words):
        load_delta(other, path)
    assert same(other.state_dict(), before)


def test_numbers_that_are_not_finite_are_refused(adapted, tmp_path):
    model, path = adapted(), tmp_path / "d.safetensors"
    torch.nn.init.constant_(model.decoder[0].qkv.lora_B_v, float("nan"))
    save_delta(model, path, class_names=NAMES)
    with pytest.raises(DeltaError, match="NaN or Inf in decoder.0.qkv.lora_B_v"):
        load_delta(adapted(), path)


def test_another_number_of_classes_is_refused(adapted, tmp_path):
    path = tmp_path / "d.safetensors"
    save_delta(adapted(), path, class_names=NAMES)
    other = adapted(base=None, classes=5)
    with pytest.raises(DeltaError, match=r"\(3,\) in .* \(5,\) in the model: the delta has 3 classes \(ant, bee, cat"):
        load_delta(other, path)


def test_other_targets_of_the_file_are_named(adapted, tmp_path):
    path = tmp_path / "d.safetensors"
    save_delta(adapted([LoRA(rank=2, targets=("qkv", "value_proj"))]), path, class_names=NAMES)
    with pytest.raises(DeltaError, match="qkv.lora_A is in the file, not in the model"):
        load_delta(adapted([LoRA(rank=2, targets=("value_proj",))]), path)


def test_another_architecture_or_a_plain_model_is_refused(adapted, make_toy, tmp_path):
    path = tmp_path / "d.safetensors"
    save_delta(adapted(), path, class_names=NAMES)
    with pytest.raises(DeltaError, match="this Toy is plain"):
        load_delta(make_toy(), path)
    linear = inject(torch.nn.Sequential(torch.nn.Linear(2, 2)), [LoRA(rank=2, targets=("0",))])
    with pytest.raises(DeltaError, match="was made for Toy, this model is Sequential"):
        load_delta(linear, path)


def test_a_damaged_file_is_refused_with_its_size(adapted, tmp_path):
    path = tmp_path / "d.safetensors"
    save_delta(adapted(), path, class_names=NAMES)
    content, model = path.read_bytes(), adapted(seed=3)
    before = state_of(model)
    for cut in (0, 5, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(DeltaError, match=rf"d.safetensors \({cut} bytes|{cut:,} bytes\) is no readable"):
            load_delta(model, path)
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DeltaError, match=r"\(16 bytes\)"):
        read_header(path)
    assert same(model.state_dict(), before)


def test_other_files_are_told_from_deltas(adapted, tmp_path):
    with pytest.raises(DeltaError, match="There is no delta file"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(DeltaError, match="no readable"):
        read_header(tmp_path)
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "plain.safetensors"))
    with pytest.raises(DeltaError, match="no header of a delta.*Full weights go to MODEL.WEIGHTS"):
        read_header(tmp_path / "plain.safetensors")


def test_a_header_with_impossible_values_is_refused(adapted, tmp_path):
    path = str(tmp_path / "d.safetensors")
    header = save_delta(adapted(), path, class_names=NAMES).to_json().replace('"rank": 2', '"rank": 0')
    save_file({MARKER: torch.empty(0)}, path, metadata={"lowrank_d2": header})
    with pytest.raises(DeltaError, match="its header is damaged: MODEL.PEFT.LORA.RANK is 0"):
        read_header(path)


def test_a_newer_format_is_refused(tmp_path):
    path = str(tmp_path / "d.safetensors")
    save_file({MARKER: torch.empty(0)}, path, metadata={"lowrank_d2": json.dumps({"format": 99})})
    with pytest.raises(DeltaError, match="delta format 99, this version reads 1. Update lowrank_d2."):
        read_header(path)


def test_writing_is_all_or_nothing(adapted, tmp_path, monkeypatch):
    model, path = adapted(), tmp_path / "d.safetensors"
    save_delta(model, path, class_names=NAMES)
    before = path.read_bytes()

    def full_disk(tensors, name, metadata):
        open(name, "wb").write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowrank_d2.peft.delta.save_file", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_delta(model, path, class_names=NAMES)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_plain_model_has_no_delta(make_toy, tmp_path):
    with pytest.raises(ConfigError, match="This Toy is not adapted"):
        save_delta(make_toy(), tmp_path / "d.safetensors", class_names=NAMES)


def test_a_set_switches_by_name_and_keeps_what_was_trained(adapted, train_steps, images, tmp_path):
    paths, outputs = {}, {}
    for seed, name in enumerate(("summer", "winter")):
        model = train_steps(adapted(seed=seed), n=seed + 1)
        paths[name], outputs[name] = tmp_path / f"{name}.safetensors", model(images)
        save_delta(model, paths[name], class_names=NAMES)
    model = adapted(seed=9)
    parts = ("backbone.", "decoder_norm.")
    frozen = {name: tensor for name, tensor in state_of(model).items() if name.startswith(parts)}
    deltas = DeltaSet(model)
    for name, path in paths.items():
        deltas.add(name, path)
    for name in ("winter", "summer", "winter"):
        deltas.switch(name)
        assert torch.equal(model(images), outputs[name]) and deltas.active == name
    trained = train_steps(model)(images)
    deltas.switch("summer")
    assert torch.equal(model(images), outputs["summer"])
    deltas.switch("winter")
    assert torch.equal(model(images), trained) and not torch.equal(trained, outputs["winter"])
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in frozen.items())


def test_a_set_takes_only_deltas_that_fit(adapted, tmp_path):
    embeddings, decoder = tmp_path / "e.safetensors", tmp_path / "d.safetensors"
    save_delta(adapted(), embeddings, class_names=NAMES)
    save_delta(adapted(train="decoder"), decoder, class_names=NAMES)
    deltas = DeltaSet(adapted())
    deltas.add("e", embeddings)
    with pytest.raises(DeltaError, match="'e' already"):
        deltas.add("e", embeddings)
    with pytest.raises(DeltaError, match="TRAIN 'decoder', 'e' with 'embeddings': only one of them holds decoder.0"):
        deltas.add("d", decoder)
    with pytest.raises(DeltaError, match="There is no delta 'x'. The set has e."):
        deltas.switch("x")
    assert deltas.active is None and set(deltas.headers) == {"e"}


def test_loading_into_a_copy_leaves_the_original(adapted, train_steps, images, tmp_path):
    path = tmp_path / "d.safetensors"
    trained = train_steps(adapted())
    save_delta(trained, path, class_names=NAMES)
    model = adapted(seed=2)
    before, twin = model(images), copy.deepcopy(model)
    load_delta(twin, path)
    assert torch.equal(model(images), before) and torch.equal(twin(images), trained(images))
