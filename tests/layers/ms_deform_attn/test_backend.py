"""Choosing, compiling, caching and refusing libraries. A script stands in for the compiler."""
import fcntl
import json
import os
import stat
import warnings

import pytest
import torch

from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.ms_deform_attn import backend, build, ms_deform_attn


def choose():
    """A fresh choice, as at the start of a process."""
    return backend.current.__wrapped__()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWRANK_D2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWRANK_D2_OPS", raising=False)
    monkeypatch.setattr(backend, "PREBUILT", tmp_path / "installed" / build.LIBRARY)


def pretend_compiler(tmp_path, monkeypatch, body):
    """$CXX becomes a shell script; returns the file that counts its calls."""
    calls, script = tmp_path / "calls", tmp_path / "c++"
    script.write_text(f"#!/bin/sh\necho >> {calls}\n{body}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(script))
    return calls


FAILS = "echo 'out of registers' >&2; exit 1"
WRITES = 'while [ "$1" != -o ]; do shift; done; echo no library > "$2"'


def test_without_a_compiler_pytorch_runs_with_one_warning(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.warns(RuntimeWarning, match="install g\\+\\+") as seen:
        chosen = choose()
    assert len(seen) == 1 and chosen.name == "torch" and chosen.library is None
    assert chosen.instruction_set() is None

    monkeypatch.setattr(backend, "current", lambda: chosen)
    value, locations = torch.ones(1, 4, 1, 2), torch.full((1, 1, 1, 1, 1, 2), 0.5)
    assert ms_deform_attn(value, [(2, 2)], locations, torch.ones(1, 1, 1, 1, 1)).tolist() == [[[1.0, 1.0]]]


def test_pytorchs_form_can_be_asked_for_in_silence(monkeypatch):
    monkeypatch.setenv("LOWRANK_D2_OPS", "torch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose().name == "torch"


@pytest.mark.parametrize(
    "wanted, message", [("fast", "'fast'.*prebuilt, jit or torch"), ("jit", "no C\\+\\+ compiler"), ("prebuilt", "isolation")]
)
def test_what_is_asked_for_and_cannot_be_had_is_an_error(monkeypatch, wanted, message):
    monkeypatch.setenv("CXX", "/nowhere/c++")
    monkeypatch.setenv("LOWRANK_D2_OPS", wanted)
    with pytest.raises(ConfigError, match=message):
        choose()


def test_a_failed_compilation_is_remembered(tmp_path, monkeypatch):
    calls = pretend_compiler(tmp_path, monkeypatch, FAILS)
    monkeypatch.setenv("MAX_JOBS", "1")
    with pytest.raises(build.BuildError, match="out of registers"):
        backend.cached_library()
    count = len(calls.read_text())
    with pytest.raises(build.BuildError, match="(?s)earlier attempt failed.*out of registers"):
        backend.cached_library()
    assert len(calls.read_text()) == count
    os.utime(tmp_path / "c++", (1, 1))  # another compiler
    with pytest.raises(build.BuildError, match="failed:\nout of registers"):
        backend.cached_library()
    assert not list((tmp_path / "cache" / build.fingerprint()).glob(".build-*"))


def test_a_library_is_compiled_once_and_only_what_verifies_is_used(tmp_path, monkeypatch):
    calls = pretend_compiler(tmp_path, monkeypatch, WRITES)
    library = backend.cached_library()
    count = len(calls.read_text())
    assert count == 3 + len(build.instruction_sets()) and build.verify(library) is None
    assert backend.cached_library() == library and len(calls.read_text()) == count

    library.write_bytes(library.read_bytes()[:5])
    assert "damaged" in build.verify(library)
    assert backend.cached_library() == library and len(calls.read_text()) == 2 * count

    side = library.with_suffix(".json")
    side.write_text(json.dumps({**json.loads(side.read_text()), "fingerprint": "older"}))
    assert "other sources" in build.verify(library)
    side.write_text("[")
    assert "cannot be read" in build.verify(library)


def test_a_library_that_does_not_load_is_reported_and_passed_over(tmp_path, monkeypatch):
    pretend_compiler(tmp_path, monkeypatch, WRITES)
    with pytest.warns(RuntimeWarning, match="cannot be loaded"):
        assert choose().name == "torch"


def test_a_foreign_library_is_not_ours(compiled, tmp_path):
    for name in os.listdir(os.path.join(os.path.dirname(torch.__file__), "lib")):
        if name.startswith("libc10."):
            with pytest.raises(build.BuildError, match="cannot be loaded"):
                backend.load(os.path.join(os.path.dirname(torch.__file__), "lib", name))


def test_an_installed_library_comes_first(compiled):
    backend.PREBUILT.parent.mkdir()
    for suffix in (".so", ".json"):
        backend.PREBUILT.with_suffix(suffix).write_bytes(compiled.library.with_suffix(suffix).read_bytes())
    assert choose().name == "prebuilt" and choose().library == backend.PREBUILT


def test_a_stale_installed_library_is_passed_over(monkeypatch):
    backend.PREBUILT.parent.mkdir()
    backend.PREBUILT.write_bytes(b"old")
    backend.PREBUILT.with_suffix(".json").write_text('{"fingerprint": "old"}')
    monkeypatch.setenv("LOWRANK_D2_OPS", "prebuilt")
    with pytest.raises(ConfigError, match="other sources"):
        choose()


def test_waiting_for_another_process_ends(tmp_path, monkeypatch):
    pretend_compiler(tmp_path, monkeypatch, WRITES)
    folder = tmp_path / "cache" / build.fingerprint()
    folder.mkdir(parents=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(build.BuildError, match="another process"):
            backend.cached_library(seconds=0.2)
    assert backend.cached_library(seconds=0.2).exists()


def test_a_cache_that_cannot_be_made_is_replaced_by_a_private_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOWRANK_D2_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(backend.tempfile, "tempdir", str(tmp_path))
    folder = backend._private_temporary_folder.__wrapped__()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert backend._private_temporary_folder.__wrapped__() == folder
    folder.chmod(0o777)  # somebody else may have written here
    assert backend._private_temporary_folder.__wrapped__() != folder
