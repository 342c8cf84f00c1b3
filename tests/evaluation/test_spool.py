"""Predictions on disk: what is read and written, that nothing stays behind, and how processes join theirs."""

import errno
import json
import os
import threading

import pytest

from lowrank_d2.errors import OutputError
from lowrank_d2.evaluation import spool as module
from lowrank_d2.evaluation.spool import Spool

MASK = {"counts": 'a"\\n[]'}
RESULTS = {3: [{"score": 0.1}, {"score": 1e-17, "segmentation": MASK}], 1: [], "two": [{"score": float("nan")}]}


def filled(folder, results=RESULTS) -> Spool:
    spool = Spool(folder)
    for key, found in results.items():
        spool.add(key, found)
    return spool


def test_reads_by_image_and_writes_as_json_does(tmp_path):
    spool = filled(tmp_path / "new")
    spool.add(3, [{"score": 0.5}])
    places = spool.index()
    assert spool.images == [3, 1, "two", 3] and [len(places[key]) for key in (3, 1, "two")] == [2, 1, 1]
    assert [spool.results_at(place) for place in places[3]] == [RESULTS[3], [{"score": 0.5}]]
    assert spool.results_at(places[1][0]) == []
    spool.write(tmp_path / "all.json")
    assert (tmp_path / "all.json").read_text() == json.dumps([*RESULTS[3], *RESULTS["two"], {"score": 0.5}])
    spool.add(7, [{"score": 0.25}])  # writing and reading leave the end where it was
    assert spool.results_at(spool.index()[7][0]) == [{"score": 0.25}]


@pytest.mark.parametrize("results", [{}, {1: [], 2: []}])
def test_no_results_are_an_empty_list(tmp_path, results):
    filled(None, results).write(tmp_path / "all.json")
    assert (tmp_path / "all.json").read_text() == "[]"


def test_the_file_has_no_name(tmp_path):
    spool = filled(tmp_path / "folder")
    assert os.listdir(tmp_path / "folder") == [] and spool.index()
    assert Spool(tmp_path / "unused").images == [] and not (tmp_path / "unused").exists()


def test_a_folder_that_cannot_be_written_and_a_full_disk_are_explained(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file.* cannot be written"):
        Spool(tmp_path / "file").add(1, [])
    spool = filled(tmp_path)

    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "full")

        seek = flush = write

    monkeypatch.setattr(spool, "_file", Full())
    for action in (lambda: spool.add(4, [{}]), spool.index, lambda: spool.write(tmp_path / "all.json")):
        with pytest.raises(OutputError, match=f"No space left to write {tmp_path}"):
            action()
    assert os.listdir(tmp_path) == ["file"]


class Processes:
    """Threads as the processes of `comm`; notes the largest piece that went from one to another."""

    def __init__(self, count: int, monkeypatch):
        self.count, self.largest = count, 0
        self._rank, self._barrier, self._sent = threading.local(), threading.Barrier(count, timeout=20), [None] * count
        monkeypatch.setattr(module.comm, "get_rank", lambda: self._rank.number)
        monkeypatch.setattr(module.comm, "is_main_process", self._main)
        monkeypatch.setattr(module.comm, "all_gather", self._all)
        monkeypatch.setattr(module.comm, "gather", lambda data: self._all(data)[: self.count if self._main() else 0])

    def run(self, work) -> None:
        def one(number):
            self._rank.number = number
            work(number)

        threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _main(self):
        return self._rank.number == 0

    def _all(self, data):
        self._sent[self._rank.number] = data
        self.largest = max(self.largest, len(data))
        self._barrier.wait()
        everything = list(self._sent)
        self._barrier.wait()
        return everything


def test_processes_join_their_results_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_PIECE", 50)
    results = [{number: [{"score": number / 7, "image_id": number}] * (number % 4)} for number in range(20)]
    shares = [results[:9], [], results[9:17], results[17:]]  # one process got no images
    spools = [filled(tmp_path, {key: found for part in share for key, found in part.items()}) for share in shares]
    processes = Processes(4, monkeypatch)
    processes.run(lambda number: spools[number].gather())
    assert [spool.images for spool in spools] == [list(range(20)), [], [], []] and processes.largest == 50
    spools[0].write(tmp_path / "all.json")
    everything = [result for part in results for found in part.values() for result in found]
    assert json.loads((tmp_path / "all.json").read_text()) == everything
    assert spools[0].results_at(spools[0].index()[19][0]) == results[19][19]
    processes.run(lambda number: spools[number].gather())  # again: there is nothing left to send
    assert spools[0].images == list(range(20))
