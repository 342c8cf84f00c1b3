"""Atomic writes: a reader sees the old file or the new one, also when writing fails in the middle."""
import errno
import json
import multiprocessing
import os
import socket

import pytest

from lowrank_d2.errors import OutputError
from lowrank_d2.files import folder_lock, replacing, write_json, write_text


def test_write_creates_missing_folders_and_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "café")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "café"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_failing_writer_leaves_the_old_content(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"old": 1})
    with pytest.raises(RuntimeError, match="halfway"):
        with replacing(target) as temporary:
            temporary.write_text('{"new"')
            raise RuntimeError("halfway")
    assert json.loads(target.read_text()) == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_output_error_that_names_the_file(tmp_path):
    target = tmp_path / "model.pth"
    target.write_bytes(b"old")
    with pytest.raises(OutputError, match="No space left.*model.pth") as caught:
        with replacing(target):
            raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_bytes() == b"old"
    assert caught.value.exit_code == 2
    assert len(list(tmp_path.iterdir())) == 1


def test_a_library_that_only_quotes_the_systems_error(tmp_path):
    text = "Error while serializing: I/O error: No space left on device (os error 28)"  # safetensors'
    with pytest.raises(OutputError, match="No space left to write .*delta.safetensors"):
        with replacing(tmp_path / "delta.safetensors"):
            raise ValueError(text)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_an_output_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="out"):
        write_text(tmp_path / "out" / "x", "")
    with pytest.raises(OutputError, match="is a file"):
        with folder_lock(tmp_path / "out"):
            pass


def test_the_lock_of_a_living_process_holds_and_is_released(tmp_path):
    with folder_lock(tmp_path):
        with pytest.raises(OutputError, match=str(os.getpid())):
            with folder_lock(tmp_path):
                pass
    with folder_lock(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_dead_process_is_taken_over_with_a_note(tmp_path, caplog):
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    (tmp_path / ".lock").write_text(json.dumps({"pid": child.pid, "host": socket.gethostname()}))
    with folder_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert f"left by process {child.pid}, which is gone" in caplog.text


def test_the_lock_of_another_host_is_respected(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(OutputError, match="elsewhere"):
        with folder_lock(tmp_path):
            pass
