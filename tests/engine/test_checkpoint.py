"""Reading checkpoints of all kinds safely, and writing them so that the previous one survives."""
import hashlib
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from detectron2.config import get_cfg
from lowrank_d2.config import add_lowrank_config
from lowrank_d2.engine.checkpoint import LowRankCheckpointer, read_checkpoint, stored_class_names, verify_weights
from lowrank_d2.errors import CheckpointError, OutputError
from torch import nn


def model_with(value=0.0):
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    nn.init.constant_(model.bias, value)
    return model


def refused(path, *parts):
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(str(path))
    for part in (str(path), *parts):
        assert part in str(caught.value)


def test_saved_checkpoints_load_again_and_in_plain_torch(tmp_path):
    LowRankCheckpointer(model_with(3.0), str(tmp_path)).save("model_0000004", iteration=4, trainer={"class_names": ["a"]})
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    model = model_with()
    checkpointer = LowRankCheckpointer(model, str(tmp_path))
    assert checkpointer.load(checkpointer.get_checkpoint_file())["iteration"] == 4
    assert torch.equal(model.weight, torch.full((1, 2), 3.0))
    assert torch.load(tmp_path / "model_0000004.pth", weights_only=True)["model"]["bias"].item() == 3.0
    assert stored_class_names(str(tmp_path / "model_0000004.pth")) == ["a"]


def test_every_format_is_read(tmp_path):
    state = {"weight": torch.full((1, 2), 2.0), "bias": torch.full((1,), 2.0)}
    torch.save(state, tmp_path / "bare.pth")
    torch.save({"model": state, "loss": np.float64(0.5)}, tmp_path / "numpy.pth")
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}))
    for name in ("bare.pth", "numpy.pth", "a.safetensors", "zoo.pkl"):
        model = model_with()
        LowRankCheckpointer(model).load(str(tmp_path / name))
        assert model.weight.sum().item() == 4.0, name


def test_the_state_dict_of_mmdetection_is_found(tmp_path):
    torch.save({"state_dict": {"weight": torch.ones(2)}, "meta": {"epoch": 12}}, tmp_path / "epoch_12.pth")
    assert list(read_checkpoint(str(tmp_path / "epoch_12.pth"))["model"]) == ["weight"]


def test_caffe2_blobs_lose_momentum_and_ask_for_conversion(tmp_path):
    blobs = {"conv1_w": np.zeros((1, 1), np.float32), "conv1_w_momentum": np.zeros((1, 1), np.float32)}
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    loaded = read_checkpoint(str(tmp_path / "c2.pkl"))
    assert list(loaded["model"]) == ["conv1_w"] and loaded["matching_heuristics"] and loaded["__author__"] == "Caffe2"


def test_matching_by_suffix_is_asked_for_in_the_address(tmp_path):
    torch.save({"model": {"weight": torch.ones(1, 2), "bias": torch.ones(1)}}, tmp_path / "a.pth")
    model = nn.Sequential(model_with())
    LowRankCheckpointer(model).load(f"{tmp_path / 'a.pth'}?matching_heuristics=True")
    assert model[0].weight.sum().item() == 2.0


class _Evil:
    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.system, (f"touch {self._path}",)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pkl"])
def test_pickled_code_is_named_and_not_run(tmp_path, name):
    content = {"model": {"weight": _Evil(tmp_path / "ran")}}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    refused(tmp_path / name, "system", "not loaded")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["a.pth", "a.pkl", "a.safetensors"])
def test_damaged_files_are_named_with_their_size(tmp_path, name):
    path = tmp_path / name
    state = {"weight": torch.rand(100, 100)}
    if name.endswith("pth"):
        torch.save(state, path)
    elif name.endswith("pkl"):
        path.write_bytes(pickle.dumps({"model": {"weight": state["weight"].numpy()}}))
    else:
        safetensors.torch.save_file(state, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, f"{len(whole) // 2} bytes")
    path.write_bytes(b"")
    refused(path, "is empty", "0 bytes")
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    refused(path, "web page")
    path.write_bytes(b"some text, nothing else" * 10)
    refused(path, "230 bytes")


def test_safetensors_with_offsets_outside_the_file(tmp_path):
    header = b'{"weight":{"dtype":"F32","shape":[4],"data_offsets":[0,4000000000]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    refused(tmp_path / "a.safetensors", "damaged")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    torch.save({"model": {"weight": torch.tensor([[1.0, float("nan")]]), "bias": torch.zeros(1)}}, tmp_path / "a.pth")
    model = model_with(5.0)
    with pytest.raises(CheckpointError, match="1 tensors hold NaN or Inf, weight"):
        LowRankCheckpointer(model).load(str(tmp_path / "a.pth"))
    assert model.weight.sum().item() == 10.0


def test_a_missing_file_names_the_key():
    with pytest.raises(CheckpointError, match="absent.pth do not exist. Check MODEL.WEIGHTS"):
        LowRankCheckpointer(model_with()).load("absent.pth")


@pytest.mark.parametrize("named", ["model_0000009.pth", "../model_0000001.pth", "/etc/passwd", None, "model_0000002.pth"])
def test_last_checkpoint_that_cannot_be_followed(tmp_path, named, caplog):
    checkpointer = LowRankCheckpointer(model_with(), str(tmp_path))
    checkpointer.save("model_0000000")
    checkpointer.save("model_0000001")
    os.utime(tmp_path / "model_0000000.pth", (1, 1))
    (tmp_path / "model_0000002.pth").write_bytes((tmp_path / "model_0000001.pth").read_bytes()[:-100])
    (tmp_path / "last_checkpoint").unlink()
    if named:
        (tmp_path / "last_checkpoint").write_text(named)
    assert checkpointer.has_checkpoint()
    with caplog.at_level("WARNING"):
        assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert "model_0000001.pth, the newest intact" in caplog.text


def test_no_intact_checkpoint(tmp_path):
    checkpointer = LowRankCheckpointer(model_with(), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    with pytest.raises(CheckpointError, match="without --resume"):
        checkpointer.get_checkpoint_file()


def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch):
    checkpointer = LowRankCheckpointer(model_with(1.0), str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def full(data, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="No space left") as caught:
        checkpointer.save("model_final")
    assert caught.value.exit_code == 3
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_torchs_own_writing_error_is_an_output_error(tmp_path, monkeypatch):
    def full(data, stream):
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match="failed writing file.*MiB are free"):
        LowRankCheckpointer(model_with(), str(tmp_path)).save("model_final")


def test_space_is_compared_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    checkpointer = LowRankCheckpointer(nn.Linear(1000, 1000), str(tmp_path))
    with pytest.raises(OutputError, match="4 MiB needed, 1 MiB free"):
        checkpointer.save("model_final")
    assert not list(tmp_path.iterdir())


def test_the_checksum_of_the_weights_is_compared_where_it_is_given(tmp_path):
    path = tmp_path / "base.pth"
    path.write_bytes(b"weights")
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.MODEL.WEIGHTS = str(path)
    verify_weights(cfg)
    cfg.MODEL.WEIGHTS_SHA256 = hashlib.sha256(b"weights").hexdigest().upper()
    verify_weights(cfg)
    path.write_bytes(b"weigh")
    with pytest.raises(CheckpointError, match=r"base.pth \(5 bytes\).*MODEL.WEIGHTS_SHA256.*cut off"):
        verify_weights(cfg)


class Classified(nn.Linear):
    """A model that says by itself what a checkpoint of other classes lacks."""

    class_dependent = frozenset({"bias"})


def test_other_shapes_are_a_table_and_other_classes_are_not_told_twice(tmp_path, caplog):
    model = Classified(2, 1)
    torch.save({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors of other shapes[^\n]*\n  weight: \(3, 2\) instead of \(1, 2\)"):
        LowRankCheckpointer(model).load(str(tmp_path / "wide.pth"))
    torch.save({"weight": torch.ones(1, 2), "bias": torch.zeros(3), "extra": torch.zeros(1)}, tmp_path / "classes.pth")
    LowRankCheckpointer(model).load(str(tmp_path / "classes.pth"))
    assert model.weight.sum().item() == 2.0
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == 1 and "extra" in told[0]


def test_an_address_that_does_not_answer(tmp_path):
    with pytest.raises(CheckpointError, match="http://127.0.0.1:9/w.pth cannot be fetched.*MODEL.WEIGHTS"):
        LowRankCheckpointer(model_with()).load("http://127.0.0.1:9/w.pth")


def test_flipped_bits_in_a_checkpoint_are_noticed(tmp_path):
    checkpointer = LowRankCheckpointer(nn.Linear(64, 64), str(tmp_path))
    for name in ("model_0000001", "model_0000002"):
        checkpointer.save(name)
    content = bytearray((tmp_path / "model_0000002.pth").read_bytes())
    content[len(content) // 2] ^= 0x10  # among the numbers of the weight
    (tmp_path / "model_0000002.pth").write_bytes(content)
    refused(tmp_path / "model_0000002.pth", "differs from its check sums", f"{len(content)} bytes")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
