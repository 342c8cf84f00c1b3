import pytest
import yaml
from detectron2.config import CfgNode, get_cfg, global_cfg, set_global_cfg


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return _write


def test_base_chain_later_wins(write):
    write("a/base.yaml", "VERSION: 2\nSEED: 1\nSOLVER: {MAX_ITER: 10, BASE_LR: 0.5}\n")
    write("a/middle.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 20}\n")
    cfg = get_cfg()
    cfg.merge_from_file(write("top.yaml", "_BASE_: a/middle.yaml\nSEED: 3\n"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 20, 0.5)


def test_list_of_bases(write):
    write("one.yaml", "VERSION: 2\nSEED: 1\nOUTPUT_DIR: one\n")
    second = write("two.yaml", "VERSION: 2\nSEED: 2\nVIS_PERIOD: 2\n")
    cfg = get_cfg()
    cfg.merge_from_file(write("top.yaml", f"_BASE_: [one.yaml, {second}]\nVIS_PERIOD: 5\n"))
    assert (cfg.SEED, cfg.OUTPUT_DIR, cfg.VIS_PERIOD) == (2, "one", 5)


def test_base_over_http(write, monkeypatch):
    import iopath.common.file_io as file_io

    cached = write("remote.yaml", "VERSION: 2\nSEED: 8\n")
    monkeypatch.setattr(file_io.HTTPURLHandler, "_get_local_path", lambda self, path, **kwargs: cached)
    cfg = get_cfg()
    cfg.merge_from_file(write("top.yaml", "_BASE_: https://example.org/base.yaml\n"))
    assert cfg.SEED == 8


def test_a_value_cannot_inherit_from_a_group(write):
    write("base.yaml", "VERSION: 2\nSOLVER: 3\n")
    with pytest.raises(AssertionError, match="SOLVER"):
        get_cfg().merge_from_file(write("top.yaml", "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 3}\n"))


def test_unknown_key_in_file(write):
    with pytest.raises(KeyError, match="Non-existent config key: MODEL.FOO"):
        get_cfg().merge_from_file(write("x.yaml", "VERSION: 2\nMODEL: {FOO: 1}\n"))


def test_newer_version_is_refused(write):
    with pytest.raises(AssertionError):
        get_cfg().merge_from_file(write("x.yaml", "VERSION: 3\n"))


def test_missing_file(tmp_path):
    with pytest.raises(AssertionError):
        get_cfg().merge_from_file(str(tmp_path / "nowhere.yaml"))


def test_python_tuple_is_read(write):
    cfg = get_cfg()
    cfg.merge_from_file(write("x.yaml", "VERSION: 2\nMODEL: {PIXEL_MEAN: !!python/tuple [1.0, 2.0, 3.0]}\n"))
    assert cfg.MODEL.PIXEL_MEAN == [1.0, 2.0, 3.0]  # the old value's type stays


def test_yaml_cannot_run_code(write):
    import detectron2

    if getattr(detectron2, "__runtime__", "full") != "lite":
        pytest.skip("a full Detectron2 loads unsafe yaml")
    with pytest.raises(yaml.constructor.ConstructorError):
        get_cfg().merge_from_file(write("x.yaml", "VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.getcwd []\n"))


@pytest.mark.parametrize(
    "key, text, expected",
    [
        ("SOLVER.BASE_LR", "1e-4", 1e-4),
        ("SOLVER.STEPS", "(1,2)", (1, 2)),
        ("SOLVER.STEPS", "[1, 2]", (1, 2)),
        ("MODEL.PIXEL_STD", "(1.0,)", [1.0]),
        ("SOLVER.WEIGHT_DECAY_BIAS", "0.5", 0.5),
        ("SOLVER.BASE_LR", "None", None),
        ("OUTPUT_DIR", "nan", "nan"),
        ("MODEL.MASK_ON", "True", True),
    ],
)
def test_merge_from_list_reads_literals(key, text, expected):
    cfg = get_cfg()
    cfg.merge_from_list([key, text])
    for part in key.split("."):
        cfg = cfg[part]
    assert cfg == expected and type(cfg) is type(expected)


@pytest.mark.parametrize("key, value", [("SOLVER.BASE_LR", "1"), ("SOLVER.MAX_ITER", "True"), ("SEED", "0.5")])
def test_types_must_match(key, value):
    with pytest.raises(ValueError):
        get_cfg().merge_from_list([key, value])


def test_bad_lists():
    with pytest.raises(AssertionError):
        get_cfg().merge_from_list(["SEED"])
    with pytest.raises(AssertionError):
        get_cfg().merge_from_list(["NO.SUCH", "1"])


def test_dump_round_trip(write):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MASK_ON", True, "SOLVER.STEPS", (5, 6), "DATASETS.TRAIN", ("a", "b")])
    text = cfg.dump()
    assert text.index("CUDNN_BENCHMARK") < text.index("DATALOADER") < text.index("VIS_PERIOD")
    again = get_cfg()
    again.merge_from_file(write("dump.yaml", text))
    again.MODEL.ROI_BOX_CASCADE_HEAD = cfg.MODEL.ROI_BOX_CASCADE_HEAD  # tuples of tuples become lists
    assert again == cfg


def test_frozen_configs():
    cfg = get_cfg()
    cfg.NEW_KEY = CfgNode({"A": 1})
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SEED = 5
    cfg.merge_from_list(["SEED", "5"])
    assert cfg.SEED == 5 and cfg.clone().is_frozen() and cfg.NEW_KEY.A == 1


def test_computed_keys_are_written_once():
    cfg = CfgNode()
    cfg.COMPUTED_SIZE = 3
    cfg.COMPUTED_SIZE = 3
    with pytest.raises(KeyError):
        cfg.COMPUTED_SIZE = 4


def test_global_cfg_is_refilled():
    cfg = get_cfg()
    cfg.SEED = 77
    before = global_cfg
    set_global_cfg(cfg)
    assert before is global_cfg and global_cfg.SEED == 77
    set_global_cfg(CfgNode({"ONLY": 1}))
    assert dict(global_cfg) == {"ONLY": 1}
