"""What the options of several processes may say, and what of it is looked at before anything starts."""
import argparse
import socket

import pytest
import torch
from lowrank_d2.engine import launch
from lowrank_d2.engine.launch import check_address, world_size
from lowrank_d2.errors import ConfigError


def arguments(*words, opts=()):
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    return argparse.Namespace(**vars(parser.parse_args(words)), opts=list(opts))


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_processes_are_counted(no_gpu):
    assert world_size(arguments()) == 1
    assert world_size(arguments("--num-processes", "3")) == 3
    assert world_size(arguments("--num-processes", "2", "--num-machines", "2", "--dist-url", "tcp://a:1")) == 4


def test_a_gpu_that_is_asked_for_must_be_there(no_gpu, monkeypatch):
    with pytest.raises(ConfigError, match="is 1, but 0 GPUs are found.*MODEL.DEVICE cpu"):
        world_size(arguments("--num-gpus", "1"))
    assert world_size(arguments("--num-gpus", "1", opts=["MODEL.DEVICE", "cpu"])) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert world_size(arguments("--num-gpus", "2")) == 2
    with pytest.raises(ConfigError, match="is 3, but 2 GPUs"):
        world_size(arguments("--num-gpus", "3"))


def test_a_port_in_use_is_a_mistake_of_the_user(no_gpu):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        words = ("--num-processes", "2", "--dist-url", f"tcp://127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=f"port {port} cannot be used.*in use"):
            check_address(arguments(*words))
        check_address(arguments(*words[2:]))  # one process meets nobody
        check_address(arguments(*words, "--num-machines", "2", "--machine-rank", "1"))  # another machine listens
    check_address(arguments(*words))


@pytest.mark.parametrize("url", ["nonsense", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "http://127.0.0.1:80"])
def test_an_address_that_is_none(no_gpu, url):
    with pytest.raises(ConfigError, match="--dist-url is .*tcp://HOST:PORT"):
        check_address(arguments("--num-processes", "2", "--dist-url", url))
