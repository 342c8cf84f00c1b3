import os
import pickle
import stat

import numpy as np
import pytest
import torch
from torch import nn

import detectron2
from detectron2.checkpoint import DetectionCheckpointer

LITE = getattr(detectron2, "__runtime__", None) == "lite"
mended = pytest.mark.skipif(not LITE, reason="a defect of Detectron2 that the lite runtime mends")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3))
        self.head = nn.Linear(3, 2)
        self.register_buffer("pixel_mean", torch.zeros(3))
        nn.init.zeros_(self.backbone[0].weight)


@pytest.fixture
def model():
    return Model()


def weight(model):
    return model.backbone[0].weight.detach()


def ones(**extra):
    return {"model": {"0.weight": torch.ones(3, 2)}, **extra}


def pickled(path, content):
    with open(path, "wb") as stream:
        pickle.dump(content, stream, protocol=2)
    return str(path)


def saved(path, content):
    torch.save(content, path)
    return str(path)


class TestSaving:
    def test_content_and_names(self, model, tmp_path):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
        checkpointer.save("model_0000019", iteration=19)
        assert (tmp_path / "last_checkpoint").read_text() == "model_0000019.pth"
        content = torch.load(tmp_path / "model_0000019.pth")
        assert set(content) == {"model", "optimizer", "iteration"}
        assert content["iteration"] == 19
        assert content["optimizer"]["param_groups"][0]["lr"] == 0.1
        assert list(content["model"]) == list(model.state_dict())
        assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000019.pth"]

    def test_resuming(self, model, tmp_path):
        optimizer = torch.optim.SGD(model.parameters(), 0.25)
        DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("a", iteration=3)
        other = Model()
        nn.init.ones_(other.backbone[0].weight)
        other_optimizer = torch.optim.SGD(other.parameters(), 9.0)
        checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=other_optimizer)
        assert checkpointer.resume_or_load("", resume=True) == {"iteration": 3}
        assert weight(other).sum() == 0
        assert other_optimizer.param_groups[0]["lr"] == 0.25

    def test_loading_without_resuming_leaves_the_checkpointables(self, model, tmp_path):
        optimizer = torch.optim.SGD(model.parameters(), 0.25)
        DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer).save("a")
        other = torch.optim.SGD(model.parameters(), 9.0)
        checkpointer = DetectionCheckpointer(model, str(tmp_path), optimizer=other)
        checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)
        assert other.param_groups[0]["lr"] == 9.0

    def test_wrapped_models_are_saved_without_their_wrapper(self, model, tmp_path):
        DetectionCheckpointer(nn.DataParallel(model), str(tmp_path)).save("a")
        assert list(torch.load(tmp_path / "a.pth")["model"]) == list(model.state_dict())

    def test_nothing_is_saved_without_a_folder_or_permission(self, model, tmp_path):
        DetectionCheckpointer(model).save("a")
        DetectionCheckpointer(model, str(tmp_path), save_to_disk=False).save("a")
        assert os.listdir(tmp_path) == []

    @mended
    def test_a_failed_save_leaves_the_previous_file(self, model, tmp_path):
        checkpointer = DetectionCheckpointer(model, str(tmp_path))
        checkpointer.save("model")
        before = (tmp_path / "model.pth").read_bytes()
        with pytest.raises(Exception):
            checkpointer.save("model", unpicklable=lambda: None)
        assert (tmp_path / "model.pth").read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]

    def test_others_may_read_the_file(self, model, tmp_path):
        umask = os.umask(0o022)
        try:
            DetectionCheckpointer(model, str(tmp_path)).save("model")
        finally:
            os.umask(umask)
        assert stat.S_IMODE((tmp_path / "model.pth").stat().st_mode) == 0o644


class TestFormats:
    def test_bare_state_dict(self, model, tmp_path):
        path = saved(tmp_path / "a.pth", {"backbone.0.weight": torch.ones(3, 2)})
        assert DetectionCheckpointer(model).load(path) == {}
        assert weight(model).sum() == 6

    def test_heuristics_by_query(self, model, tmp_path):
        path = saved(tmp_path / "a.pth", ones())
        DetectionCheckpointer(model).load(path)
        assert weight(model).sum() == 0
        DetectionCheckpointer(model).load(path + "?matching_heuristics=False")
        assert weight(model).sum() == 0
        DetectionCheckpointer(model).load(path + "?matching_heuristics=True")
        assert weight(model).sum() == 6

    def test_heuristics_by_the_file(self, model, tmp_path):
        content = {"model": {"0.weight": np.ones((3, 2), np.float32)}, "__author__": "somebody"}
        DetectionCheckpointer(model).load(pickled(tmp_path / "a.pkl", content))
        assert weight(model).sum() == 0
        content["matching_heuristics"] = True
        DetectionCheckpointer(model).load(pickled(tmp_path / "b.pkl", content))
        assert weight(model).sum() == 6

    def test_tensors_in_pickles(self, model, tmp_path):
        content = ones(__author__="a converter script", matching_heuristics=True)
        DetectionCheckpointer(model).load(pickled(tmp_path / "a.pkl", content))
        assert weight(model).sum() == 6

    @pytest.mark.parametrize("wrap", [lambda blobs: blobs, lambda blobs: {"blobs": blobs, "cfg": "text"}])
    def test_caffe2(self, tmp_path, wrap):
        model = nn.Module()
        model.stem = nn.Module()
        model.stem.conv1 = nn.Conv2d(3, 4, 7)
        value = np.random.rand(4, 3, 7, 7).astype(np.float32)
        blobs = {"conv1_w": value, "conv1_w_momentum": value + 1}
        DetectionCheckpointer(model).load(pickled(tmp_path / "R-50.pkl", wrap(blobs)))
        assert torch.equal(model.stem.conv1.weight, torch.from_numpy(value))

    def test_pycls(self, model, tmp_path):
        path = saved(tmp_path / "a.pyth", {"model_state": ones()["model"], "epoch": 3})
        DetectionCheckpointer(model).load(path)
        assert weight(model).sum() == 6
        with pytest.raises(AssertionError, match="model_state"):
            DetectionCheckpointer(model).load(saved(tmp_path / "b.pyth", {"epoch": 3}))

    def test_other_shapes_are_skipped(self, model, tmp_path):
        path = saved(tmp_path / "a.pth", {"model": {"head.weight": torch.ones(5, 3), "head.bias": torch.ones(2)}})
        before = model.head.weight.clone()
        DetectionCheckpointer(model).load(path)
        assert torch.equal(model.head.weight, before)
        assert torch.equal(model.head.bias, torch.ones(2))

    @mended
    def test_numpy_numbers_in_pth(self, model, tmp_path):
        path = saved(tmp_path / "a.pth", ones(iteration=np.int64(5), best=np.float64(0.5)))
        assert DetectionCheckpointer(model).load(path) == {"iteration": 5, "best": 0.5}


class TestLoading:
    def test_nothing(self, model):
        assert DetectionCheckpointer(model).load("") == {}
        assert DetectionCheckpointer(model).load(None) == {}

    def test_missing_file(self, model, tmp_path):
        with pytest.raises(AssertionError, match="nowhere"):
            DetectionCheckpointer(model).load(str(tmp_path / "nowhere.pth"))

    def test_unknown_query(self, model, tmp_path):
        with pytest.raises(ValueError, match="colour"):
            DetectionCheckpointer(model).load(saved(tmp_path / "a.pth", ones()) + "?colour=red")

    @mended
    def test_a_failed_load_does_not_spoil_the_next(self, model, tmp_path):
        path = saved(tmp_path / "a.pth", ones())
        checkpointer = DetectionCheckpointer(model)
        for bad in (str(tmp_path / "nowhere.pth"), path + "?colour=red"):
            with pytest.raises((AssertionError, ValueError)):
                checkpointer.load(bad)
        checkpointer.load(path + "?matching_heuristics=True")
        assert weight(model).sum() == 6
        nn.init.zeros_(model.backbone[0].weight)
        checkpointer.load(path)
        assert weight(model).sum() == 0

    def test_missing_and_unexpected_names_are_reported(self, model, tmp_path):
        incompatible = []

        class Spy(DetectionCheckpointer):
            def _log_incompatible_keys(self, keys):
                incompatible.append(keys)

        state = {"backbone.0.weight": torch.ones(3, 2), "extra": torch.ones(1)}
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.ones(1)
        Spy(model).load(saved(tmp_path / "a.pth", {"model": state}))
        (keys,) = incompatible
        # the config decides on pixel_mean, and anchors are computed
        assert sorted(keys.missing_keys) == ["backbone.0.bias", "head.bias", "head.weight"]
        assert keys.unexpected_keys == ["extra"]
