"""Checkpoints of detection models: Detectron2's own, bare state dicts, model zoo pickles, Caffe2 and pycls weights."""
import contextlib
import os
import tempfile
from urllib.parse import parse_qs

import torch
from fvcore.common.checkpoint import Checkpointer

import detectron2.utils.comm as comm
from detectron2.checkpoint import safe_pickle
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.utils.file_io import PathManager


class DetectionCheckpointer(Checkpointer):
    """fvcore's Checkpointer, for more file formats and with names matched by suffix where the file asks for it.

    A path may end in `?matching_heuristics=True`: then each parameter of the model takes the longest name in the
    checkpoint that equals its own or is its end after a dot. Pickles (.pkl) of Caffe2 and .pyth files imply it.
    Files appear under their name only when they are complete, so that a crash leaves the previous one.

    Without a `save_dir` nothing is saved; `save_to_disk` None saves on the main process only. The `checkpointables`
    have state_dict and load_state_dict, and are saved under their keyword.
    """

    def __init__(self, model, save_dir="", *, save_to_disk=None, **checkpointables):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager, self._matching_heuristics = PathManager, False

    def save(self, name, **kwargs):
        """Writes `name`.pth with the model, the checkpointables and `kwargs`, then names it in last_checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        assert os.path.basename(name) == name, f"a checkpoint's name has no folder: {name}"
        states = {name: checkpointable.state_dict() for name, checkpointable in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with self._replacing(path) as stream:
            torch.save(data, stream)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename):
        """Writes the name of the file that resuming begins from."""
        with self._replacing(os.path.join(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())

    def load(self, path, *args, **kwargs):
        """Loads `path` ("" or None loads nothing); returns what in the file was neither model nor checkpointable."""
        path, self._matching_heuristics = self._split_query(path)
        return super().load(path, *args, **kwargs)

    @staticmethod
    def _split_query(path):
        if not path or os.path.isfile(path):
            return path, False
        path, _, query = path.partition("?")
        options = parse_qs(query, keep_blank_values=True)
        heuristics = options.pop("matching_heuristics", ["False"])
        if options:
            raise ValueError(f"The checkpoint path {path}?{query} has the unknown query {', '.join(options)}")
        return path, heuristics == ["True"]

    def _load_file(self, filename):
        if filename.endswith(".pkl"):
            loaded = self._load_pickle(filename)
        elif filename.endswith(".pyth"):
            loaded = self._torch_load(filename)
            assert "model_state" in loaded, f"{filename} is no pycls checkpoint: it has no 'model_state'"
            loaded = {"model": loaded["model_state"], "__author__": "pycls", "matching_heuristics": True}
        else:
            loaded = self._torch_load(filename)
            if "model" not in loaded:
                loaded = {"model": loaded}
        if self._matching_heuristics:
            loaded["matching_heuristics"] = True
        return loaded

    def _load_pickle(self, filename):
        with open(filename, "rb") as stream:
            data = safe_pickle.load(stream)
        if "model" in data and "__author__" in data:
            self.logger.info("%s comes from '%s'", filename, data["__author__"])
            return data
        blobs = data.get("blobs", data)
        weights = {name: value for name, value in blobs.items() if not name.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f):
        # Never with arbitrary code; but the iteration or a metric may have been saved as a number of numpy's.
        with torch.serialization.safe_globals(safe_pickle.NUMPY_GLOBALS):
            return torch.load(f, map_location="cpu", weights_only=True)

    def _load_model(self, checkpoint):
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            model = self.model.state_dict()
            checkpoint["model"] = align_and_update_state_dicts(model, checkpoint["model"], c2_conversion=is_caffe2)
        incompatible = super()._load_model(checkpoint)
        # The config decides on these, so files without them are complete; older files hold anchors, which are computed.
        own = {name for name, _ in self.model.named_buffers(recurse=False)} & {"pixel_mean", "pixel_std"}
        missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
        missing[:] = [name for name in missing if name not in own]
        unexpected[:] = [name for name in unexpected if "anchor_generator.cell_anchors" not in name]
        return incompatible

    @contextlib.contextmanager
    def _replacing(self, path):
        """A binary stream whose content stands at `path` after the `with`; if that fails, what stood there stays."""
        if "://" in path:  # only the storage behind the path manager knows how to replace remote files
            with self.path_manager.open(path, "wb") as stream:
                yield stream
            return
        folder, name = os.path.split(path)
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)  # mkstemp lets only its owner read
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
