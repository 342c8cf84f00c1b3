"""The shipped configurations: the decoder's parameters as exact integers, and the counts of the paper's tables."""
import pytest

from lors.configure import residuals
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.report import report
from lowrank_d2.errors import ConfigError
from projects.LORS.tests.models import CONFIGS

QUERIES = 100 * (256 + 4)
MODELS = {  # decoder, total
    "adamixer_R50": (110_272_296, 134_790_904),
    "adamixer_R50_2x64": (135_536_424, 160_055_032),
    "lors_R50": (35_348_264, 59_866_872),
    "lors_R101": (35_348_264, 78_859_000),
    "lors_SwinS": (35_348_264, 84_583_042),
}
LORS = "MODEL.ADAMIXER.LORS."


def counts_of(name, *words):
    files = [str(CONFIGS / f"{part}.yaml") for part in name.split("+")]
    return report(load_config(files, [str(word) for word in words]))


@pytest.mark.parametrize("name", MODELS)
def test_the_sizes_of_the_models(name):
    counts = counts_of(name)
    parts = {part: row["base"] for part, row in counts.by_component.items()}
    assert (parts["decoder"], counts.total, parts["queries"]) == (*MODELS[name], QUERIES)
    assert parts["neck"] == (370_176 if "Swin" in name else 984_576)


@pytest.mark.parametrize("name", MODELS)
def test_more_queries_are_52000_parameters_more(name):
    ready, composed = f"{name}_300q_36ep", f"{name}+300q_36ep"
    assert counts_of(ready).total == counts_of(composed).total == MODELS[name][1] + 2 * QUERIES
    cfg = load_config(str(CONFIGS / f"{ready}.yaml"))
    assert (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.INPUT.CROP.ENABLED, cfg.OUTPUT_DIR) == (300, True, f"output/{ready}")
    epochs = [step / 7330 for step in (*cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER)]
    assert epochs == [24, 33, 36] and cfg.SOLVER.WARMUP_ITERS == (1000 if "Swin" in name else 500)


def test_the_stem_and_the_first_stage_do_not_train():
    rows = counts_of("lors_R50").by_component
    frozen = {part: row["base"] - row["trainable"] for part, row in rows.items()}
    # 7 x 7 stem and three bottlenecks with the scales and shifts of their norms; the queries' boxes.
    assert frozen == {"backbone": 225_344, "neck": 0, "queries": 400, "decoder": 0}
    assert counts_of("lors_SwinS").by_component["backbone"]["trainable"] == 48_838_602


@pytest.mark.parametrize("setting, words", [
    ("defaults", ()),
    ("table 6: K=1 r_A=8", (LORS + "ADAPTIVE_GROUPS", [1] * 6, LORS + "ADAPTIVE_RANK", 8)),
    ("table 6: K=1 r_A=16", (LORS + "ADAPTIVE_GROUPS", [1] * 6)),
    ("table 6: K=2 r_A=16", (LORS + "ADAPTIVE_GROUPS", [2] * 6)),
    ("table 6: K=1 r_A=32", (LORS + "ADAPTIVE_GROUPS", [1] * 6, LORS + "ADAPTIVE_RANK", 32)),
    ("table 7: r_T=2", (LORS + "STATIC_RANK", 2)),
    ("table 7: r_T=4", (LORS + "STATIC_RANK", 4)),
    ("table 7: r_T=16", (LORS + "STATIC_RANK", 16)),
    ("table 7: r_T=32", (LORS + "STATIC_RANK", 32)),
    ("table 8: 3 stages", ("MODEL.ADAMIXER.NUM_STAGES", 3)),
    ("table 8: 9 stages", ("MODEL.ADAMIXER.NUM_STAGES", 9)),
    ("table 8: 12 stages", ("MODEL.ADAMIXER.NUM_STAGES", 12)),
    ("4x32", ("MODEL.ADAMIXER.SAMPLING_GROUPS", 4, "MODEL.ADAMIXER.IN_POINTS", 32)),
])
def test_every_row_of_the_papers_tables(reference, setting, words):
    (expected,) = [row["total"] for row in reference("lors_counts.json")["rows"] if row["setting"].startswith(setting)]
    assert counts_of("lors_R50", *words).by_component["decoder"]["base"] == expected


@pytest.mark.parametrize("kind, sampling, millions", [
    ("ADAPTIVE", (2, 64), 75.706), ("STATIC", (2, 64), 95.179),
    ("ADAPTIVE", (4, 32), 74.703), ("STATIC", (4, 32), 69.914),
])
def test_one_kind_alone_is_larger_than_the_papers_table_4_says(kind, sampling, millions):
    other = {"ADAPTIVE": "STATIC", "STATIC": "ADAPTIVE"}[kind]
    words = ("MODEL.ADAMIXER.SAMPLING_GROUPS", sampling[0], "MODEL.ADAMIXER.IN_POINTS", sampling[1])
    counts = counts_of("lors_R50", LORS + other, False, *words)
    assert counts.by_component["decoder"]["base"] / 1e6 == pytest.approx(millions, abs=5e-4)


@pytest.mark.parametrize("stages, thirds", [
    (1, [1]), (3, [1, 2, 3]), (4, [1, 1, 2, 3]), (6, [1, 1, 2, 2, 3, 3]), (9, [1, 1, 1, 2, 2, 2, 3, 3, 3]),
])
def test_groups_of_other_depths_go_by_thirds(small_config, stages, thirds):
    cfg = small_config("lors_R50", {"MODEL.ADAMIXER.NUM_STAGES": stages})
    adaptive, static = residuals(cfg.MODEL.ADAMIXER)
    assert (adaptive.groups, static.groups) == (tuple(thirds), (1,) * stages)


def test_given_groups_hold_and_must_fit(small_config):
    groups = {LORS + "ADAPTIVE_GROUPS": [3, 0, 1]}
    adaptive, _ = residuals(small_config("lors_R50", groups).MODEL.ADAMIXER)
    assert adaptive.groups == (3, 0, 1)
    with pytest.raises(ConfigError, match=r"ADAPTIVE_GROUPS is \[3, 0, 1\], but MODEL.ADAMIXER.NUM_STAGES is 2"):
        residuals(small_config("lors_R50", {**groups, "MODEL.ADAMIXER.NUM_STAGES": 2}).MODEL.ADAMIXER)
    with pytest.raises(ConfigError, match=r"STATIC_GROUPS is \[1, -1, 1\]"):
        residuals(small_config("lors_R50", {LORS + "STATIC_GROUPS": [1, -1, 1]}).MODEL.ADAMIXER)
    plain = small_config("lors_R50", {LORS + "ENABLED": False})
    assert residuals(plain.MODEL.ADAMIXER) == (None, None)
