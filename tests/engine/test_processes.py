"""Runs in processes of their own: killed at the worst moments and resumed; several processes; signals from outside."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.engine.tiny import losses_of, write_dataset

pytestmark = pytest.mark.slow
CONFIG = str(Path(__file__).with_name("small_maskdino.yaml"))
ROOT = Path(__file__).parents[2]

# tools/train_net.py, but the process kills itself: in the middle of a step, or with half a checkpoint written.
KILLED = textwrap.dedent("""
    import os, signal, sys
    import torch
    from lowrank_d2.engine import run, trainer
    from lowrank_d2.engine.defaults import run_tool

    moment, count = os.environ["KILL"].split(":")

    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    step = trainer.LowRankTrainer._forward
    def forward(self, model, batch):
        if moment == "step" and self.iter == int(count):
            kill()
        return step(self, model, batch)
    trainer.LowRankTrainer._forward = forward

    save, saved = torch.save, []
    def half(data, stream):
        if moment == "save" and len(saved) == int(count):
            stream.write(b"half a checkpoint")
            stream.flush()
            kill()
        saved.append(1)
        save(data, stream)
    torch.save = half
    sys.exit(run_tool(run.main, run.train_parser("")))
""")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    json_file = write_dataset(tmp_path_factory.mktemp("data"), images=9)
    return ["--train-json", str(json_file), "--train-images", str(json_file.parent)]


def start(script, out, own, *words, kill=None, opts=()):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if kill:
        environment["KILL"] = kill
    command = [sys.executable, *script, "--config-file", CONFIG, *own, *words, "OUTPUT_DIR", str(out), *opts]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code):
    output, error = process.communicate(timeout=300)
    assert process.returncode == code, output[-2000:] + error[-3000:]
    return output, error


TOOL = [str(ROOT / "tools" / "train_net.py")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, own):
    out = tmp_path_factory.mktemp("whole") / "out"
    finish(start(TOOL, out, own), 0)
    return losses_of(out)


@pytest.mark.parametrize("kill, resumes_at", [("step:3", 2), ("step:1", 0), ("save:1", 2), ("save:0", 0)])
def test_killed_and_resumed_is_as_never_killed(tmp_path, own, whole, kill, resumes_at):
    finish(start(["-c", KILLED], tmp_path / "out", own, kill=kill), -signal.SIGKILL)
    output, _ = finish(start(TOOL, tmp_path / "out", own, "--resume"), 0)
    assert f"Training from iteration {resumes_at} to 6" in output
    assert losses_of(tmp_path / "out") == whole


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_leaves_no_children(tmp_path, own, processes, number, code):
    out = tmp_path / "out"
    process = start(TOOL, out, own, "--num-processes", str(processes), opts=("SOLVER.MAX_ITER", "5000"))
    while process.poll() is None and not (out / "model_0000003.pth").exists():
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()
    children = descendants(process.pid)
    assert len(children) >= 2
    process.send_signal(number)
    _, error = finish(process, code)
    assert "Traceback" not in error
    time.sleep(0.5)
    assert [pid for pid in children if alive(pid)] == []
    last = (out / "last_checkpoint").read_text()
    done = max(json.loads(line)["iteration"] for line in (out / "metrics.json").read_text().splitlines())
    assert last == f"model_{done:07d}.pth" and not (out / ".lock").exists()


def test_two_processes_share_a_batch_and_resume_exactly(tmp_path, own):
    finish(start(TOOL, tmp_path / "whole", own, "--num-processes", "2"), 0)
    finish(start(TOOL, tmp_path / "cut", own, "--num-processes", "2", opts=("SOLVER.MAX_ITER", "3")), 0)
    (tmp_path / "cut" / "model_final.pth").unlink()
    finish(start(TOOL, tmp_path / "cut", own, "--num-processes", "2", "--resume"), 0)
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    _, error = finish(start(TOOL, tmp_path / "cut", own, "--resume", opts=("SOLVER.MAX_ITER", "9")), 2)
    assert "used 2 processes" in error


def test_an_error_in_a_process_ends_all_with_its_code(tmp_path, own):
    process = start(TOOL, tmp_path / "out", own, "--num-processes", "2", opts=("SOLVER.BASE_LR", "1e30"))
    _, error = finish(process, 3)
    assert "Lower SOLVER.BASE_LR" in error and "Traceback" not in error


def test_a_killed_process_ends_the_run_with_one_message(tmp_path, own):
    out = tmp_path / "out"
    process = start(TOOL, out, own, "--num-processes", "2", opts=("SOLVER.MAX_ITER", "5000"))
    while process.poll() is None and not (out / "model_0000003.pth").exists():
        time.sleep(0.2)
    ranks = [pid for pid in descendants(process.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    _, error = finish(process, 3)
    assert error.count("error:") == 1 and ("SIGKILL" in error or "connection to another process was lost" in error)
    assert "Traceback" not in error


def test_what_every_process_finds_is_said_once(tmp_path, own):
    finish(start(TOOL, tmp_path / "out", own, opts=("SOLVER.MAX_ITER", "2")), 0)
    _, error = finish(start(TOOL, tmp_path / "out", own, "--resume", "--num-processes", "2"), 2)
    assert error.count("error:") == 1 and "used 1 processes, now there are 2" in error


def test_more_processes_than_images_to_evaluate(tmp_path, own):
    pair = write_dataset(tmp_path / "pair", images=2)
    words = [*own, "--val-json", str(pair), "--val-images", str(pair.parent), "--eval-only"]
    finish(start(TOOL, tmp_path / "trained", own, opts=("SOLVER.MAX_ITER", "1")), 0)
    found = {}
    for processes in (1, 3):
        out = tmp_path / f"by_{processes}"
        weights = ("MODEL.WEIGHTS", str(tmp_path / "trained" / "model_final.pth"))
        output, error = finish(start(TOOL, out, words, "--num-processes", str(processes), opts=weights), 0)
        assert output.count("masks ") == 1 and "Traceback" not in error
        found[processes] = json.loads((out / "inference" / "coco_instances_results.json").read_text())
    assert {row["image_id"] for row in found[3]} == {1, 2}
    assert sorted(found[3], key=json.dumps) == sorted(found[1], key=json.dumps)


def test_validation_losses_of_a_number_of_images_that_processes_cannot_share(tmp_path, own):
    three = write_dataset(tmp_path / "three", images=3)
    words = [*own, "--val-json", str(three), "--val-images", str(three.parent), "--num-processes", "2"]
    finish(start(TOOL, tmp_path / "out", words, opts=("SOLVER.MAX_ITER", "2", "TEST.VALIDATION_LOSS", "True")), 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert 0 < lines[1]["validation_loss"] < 10 * lines[1]["total_loss"]


def descendants(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in (task / "children").read_text().split():
            found += [int(child), *descendants(child)]
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
