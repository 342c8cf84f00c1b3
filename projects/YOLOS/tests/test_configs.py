"""The shipped configurations: sizes of the models, and Table 1 of the paper on low-rank variants of YOLOS-S."""
import pytest
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report, table

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
    sizes = {name: row["base"] for name, row in counts.by_component.items()}
    assert sizes == {"backbone": 30_056_448, "heads": 628_320}


# The paper's Table 1, parameters as they are trained: AdaLoRA's row there is the pruned model.
TABLE_1 = {
    "yolos_s_lora": (294_912, 30_979_680),
    "yolos_s_adalora": (442_944, 31_127_712),
    "yolos_s_loha": (442_368, 31_127_136),
    "yolos_s_lokr": (74_112, 30_758_880),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_table_1(name):
    counts = counts_of(name)
    assert (counts.base, counts.added, counts.total) == (30_684_768, *TABLE_1[name])
    assert counts.trainable == counts.added


def test_the_pruned_model_of_table_1():
    # The paper's total, 30,980,088, has 24 counters of ranks more, which are no parameters.
    counts = counts_of("yolos_s_adalora")
    assert counts.added_after_budget == 295_296 and counts.base + counts.added_after_budget == 30_980_064
    assert counts.as_dict()["added_after_budget"] == 295_296
    assert "295,296 of the added 442,944 are left" in table(counts)
    assert "added_after_budget" not in counts_of("yolos_s_lora").as_dict()


def test_both_heads_may_train_beside_lora():
    counts = counts_of("yolos_s_lora", "MODEL.PEFT.TRAIN", "embeddings")
    assert (counts.trainable, counts.total) == (923_232, 30_979_680)


@pytest.mark.parametrize("name, words, added, total", [
    ("yolos_s_loha", ["MODEL.PEFT.LOHA.RANK", "8"], 294_912, 30_979_680),
    ("yolos_s_lokr", ["MODEL.PEFT.LOKR.RANK", "8", "MODEL.PEFT.LOKR.FACTOR", "8"], 19_968, 30_704_736),
])
def test_what_the_papers_table_2_would_give(name, words, added, total):
    counts = counts_of(name, *words)
    assert (counts.added, counts.total) == (added, total)


def test_full_fine_tuning_adds_nothing():
    counts = counts_of("yolos_s_full")
    assert counts.added == 0 and counts.trainable == counts.base == 30_684_768
