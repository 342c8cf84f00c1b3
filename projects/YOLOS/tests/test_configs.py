"""The shipped configurations: sizes of the models, and the counts of the seed's Table 1."""
import pytest
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report

from projects.YOLOS.tests.models import CONFIGS

SIZES = {"yolos_ti": 6_488_736, "yolos_s": 30_684_768, "yolos_s_dwr": 27_561_696, "yolos_b": 127_798_368}


def counts_of(name, *words):
    return report(load_config(str(CONFIGS / f"{name}.yaml"), list(words)))


@pytest.mark.parametrize("name", SIZES)
def test_the_sizes_of_the_models(name):
    counts = counts_of(name)
    assert (counts.base, counts.added, counts.trainable) == (SIZES[name], 0, SIZES[name])


def test_the_heads_are_a_component():
    counts = counts_of("yolos_s", "MODEL.PEFT.TRAIN", "embeddings")
    assert counts.trainable == 628_320
    assert {name: row["base"] for name, row in counts.by_component.items()} == {"backbone": 30_056_448, "heads": 628_320}
