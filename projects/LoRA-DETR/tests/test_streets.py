"""The study on street scenes: what its arms share, and how its numbers are put together."""
import sys

import pytest
import streets


def flat(node, path=""):
    for key, value in node.items():
        if hasattr(value, "items"):
            yield from flat(value, f"{path}{key}.")
        else:
            yield path + key, value


def test_the_arms_differ_in_their_branches_alone(tmp_path):
    without, branches = (
        dict(flat(streets.configuration(tmp_path, tmp_path / "backbone.pth", arm, 1, 60))) for arm in streets.ARMS
    )
    assert {key: (without[key], branches[key]) for key in without if without[key] != branches[key]} == {
        "MODEL.LORA_DETR.K": (None, [2, 4, 6])
    }
    assert (without["SOLVER.STEPS"], without["TEST.EVAL_PERIOD"], without["SEED"]) == ((48,), 10, 1)


def test_the_table_has_every_run_the_differences_and_their_spread():
    curves = {
        "without": {1: {100: 1.0, 200: 10.0}, 2: {100: 3.0, 200: 14.0}},
        "branches": {1: {100: 0.5, 200: 13.0}, 2: {100: 4.5, 200: 14.2}},
    }
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in streets.table(curves).splitlines()]
    assert cells[0] == ["", "seed", "100", "200"]
    assert cells[2:] == [
        ["without", "1", "1.0", "10.0"], ["without", "2", "3.0", "14.0"],
        ["without", "mean", "2.0 ± 1.4", "12.0 ± 2.8"],
        ["branches", "1", "0.5", "13.0"], ["branches", "2", "4.5", "14.2"],
        ["branches", "mean", "2.5 ± 2.8", "13.6 ± 0.8"],
        ["ahead", "1", "-0.5", "+3.0"], ["ahead", "2", "+1.5", "+0.2"], ["ahead", "mean", "+0.5 ± 1.4", "+1.6 ± 2.0"],
    ]  # fmt: skip
    alone = streets.table({"without": {1: {100: 1.0}}}).splitlines()
    assert len(alone) == 3 and "mean" not in alone[2]


@pytest.mark.slow
def test_a_short_study_trains_and_is_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(streets, "SCENES", {"train": 4, "val": 2})
    monkeypatch.setenv(streets.VARIABLE, "")  # the study sets it; this puts the old one back
    words = ["--output", str(tmp_path), "--iterations", "12", "--seeds", "5"]
    monkeypatch.setattr(sys, "argv", ["streets.py", *words])
    streets.main()
    first = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in first.splitlines()[2:]] == ["without", "branches", "ahead"]
    assert first.splitlines()[0].replace(" ", "") == "||seed|2|4|6|8|10|12|"
    monkeypatch.setattr(streets, "LowRankTrainer", None)
    streets.main()
    assert capsys.readouterr().out == first
