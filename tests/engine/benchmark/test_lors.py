from pathlib import Path

import pytest

from lowrank_d2.engine.benchmark import lors
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report

CONFIGS = Path(__file__).resolve().parents[3] / "projects" / "LORS" / "configs"
FILES = [str(CONFIGS / "lors_R50.yaml")], [str(CONFIGS / "adamixer_R50_2x64.yaml")]
SMALL = (
    "MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 4 "
    "MODEL.ADAMIXER.EMBED_DIM 32 MODEL.ADAMIXER.NUM_QUERIES 10 MODEL.ADAMIXER.FEEDFORWARD_DIM 32 "
    "MODEL.ADAMIXER.NUM_STAGES 2 MODEL.ADAMIXER.LORS.ADAPTIVE_RANK 2 MODEL.ADAMIXER.LORS.STATIC_RANK 2"
).split()


@pytest.mark.slow
def test_lors_is_divided_by_adamixer():
    found = lors.run(*FILES, rounds=1, opts=SMALL)
    assert list(found)[:4] == ["step_ratio", "inference_ratio", "peak_ratio", "parameters_ratio"]
    sizes = [report(load_config(files, SMALL)).total for files in FILES]
    assert found["parameters_ratio"] == round(sizes[0] / sizes[1], 3)
    assert [found[name]["parameters"] for name in ("lors", "adamixer")] == sizes
    for ratio, kind in (("step_ratio", "step_seconds"), ("peak_ratio", "peak_mb")):
        assert found[ratio] == pytest.approx(found["lors"][kind] / found["adamixer"][kind], abs=0.05)


def test_a_step_trains_and_a_prediction_does_not(monkeypatch):
    monkeypatch.setattr(lors, "SIZE", 64)
    built = []
    monkeypatch.setattr(lors, "build_model", lambda cfg, build=lors.build_model: built.append(build(cfg)) or built[-1])
    step, predict = lors._tasks(FILES[0], SMALL)
    weight = built[0].decoder.stages[1].attention.qkv.weight
    before = weight.detach().clone()
    predict()
    assert not built[0].training and (weight == before).all()
    step()
    assert built[0].training and not (weight == before).all()
