"""Configuration files, KEY VALUE words, error messages and exit codes."""
import functools
import json
import subprocess
import sys
import textwrap

import pytest
import yaml
from detectron2.config import get_cfg
from lowrank_d2.config import add_lowrank_config
from lowrank_d2.engine import defaults
from lowrank_d2.engine.config_file import Setting, read_settings, settings_of_words
from lowrank_d2.engine.config_values import CHOICES, RANGES, all_keys, merge_settings
from lowrank_d2.engine.defaults import config_parser, load_config, parse, run_tool
from lowrank_d2.errors import ConfigError, TrainingError


def write(folder, name, text):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def refused(words, *parts, files=()):
    with pytest.raises(ConfigError) as caught:
        load_config(list(files), words)
    for part in parts:
        assert part in str(caught.value)


def test_files_compose_and_later_ones_win(tmp_path):
    write(tmp_path, "base.yaml", "SOLVER:\n  BASE_LR: 1\n  MAX_ITER: 7\n")
    first = write(tmp_path, "first.yaml", "_BASE_: base.yaml\nSOLVER:\n  MAX_ITER: 8\n")
    second = write(tmp_path, "second.yaml", "MODEL:\n  PEFT:\n    METHODS: [lora]\n")
    cfg = load_config([first, second], ["SOLVER.IMS_PER_BATCH", "3", "DATASETS.TRAIN", "('a',)"])
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.TRAIN) == (8, 3, ("a",))
    assert cfg.MODEL.PEFT.METHODS == ["lora"]


def test_an_int_is_taken_for_every_float_of_ours():
    cfg, theirs = get_cfg(), set(all_keys(get_cfg()))
    add_lowrank_config(cfg)
    defaults = {key: functools.reduce(getattr, key.split("."), cfg) for key in all_keys(cfg) if key not in theirs}
    floats = [key for key, value in defaults.items() if isinstance(value, float)]
    assert {"MODEL.PEFT.LORA.DROPOUT", "TEST.EARLY_STOP.MIN_DELTA", "MODEL.MaskDINO.CLASS_WEIGHT"} < set(floats)
    for key in floats:
        given = [number for number in (0, 1) if key not in RANGES or RANGES[key].contains(number)]
        if given:
            merge_settings(cfg, [Setting(key, given[0], "here")])
            value = functools.reduce(getattr, key.split("."), cfg)
            assert (value, type(value)) == (given[0], float)


def test_list_of_bases_later_over_earlier_and_the_file_over_all(tmp_path):
    write(tmp_path, "a.yaml", "SEED: 1\nSOLVER: {MAX_ITER: 1, BASE_LR: 0.5}\n")
    write(tmp_path, "b.yaml", "SEED: 2\nSOLVER: {MAX_ITER: 2}\n")
    cfg = load_config(write(tmp_path, "c.yaml", "_BASE_: [a.yaml, b.yaml]\nSEED: 3\n"))
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (3, 2, 0.5)


def test_script_defines_cfg(tmp_path):
    cfg = load_config(write(tmp_path, "a.py", "cfg = dict(SOLVER=dict(MAX_ITER=2 * 5))"))
    assert cfg.SOLVER.MAX_ITER == 10


def test_typo_names_file_line_and_full_key(tmp_path):
    path = write(tmp_path, "a.yaml", "MODEL:\n  PEFT:\n    LORA:\n      RANKS: 4\n")
    refused([], f"{path}:4", "MODEL.PEFT.LORA.RANKS", "MODEL.PEFT.LORA.RANK?", files=[path])
    refused(["MODEL.LORA.RANK", "4"], "MODEL.PEFT.LORA.RANK?")
    refused(["model.peft.lora.rank", "4"], "MODEL.PEFT.LORA.RANK?")


@pytest.mark.parametrize("words, parts", [
    (["MODEL.PEFT.LORA.RANK", "0"], ["is 0", "at least 1"]),
    (["MODEL.PEFT.LORA.RANK", "4.5"], ["an integer", "a number: 4.5"]),
    (["MODEL.PEFT.LORA.RANK", "None"], ["None"]),
    (["SOLVER.BASE_LR", "-1"], ["-1", "above 0"]),
    (["SOLVER.BASE_LR", "nan"], ["a number", "'nan'"]),
    (["SOLVER.BASE_LR", "True"], ["a number", "True"]),
    (["SOLVER.MAX_ITER", "ten"], ["an integer", "'ten'"]),
    (["MODEL.PEFT.ADAPTER.RESIDUAL", "kapa"], ["'kapa'", "'kappa'", "'lambda'", "'kappa+lambda'"]),
    (["MODEL.PEFT.METHODS", "['lora', 'dorra']"], ["'dorra'", "'lora'", "'adapter'"]),
    (["MODEL.PEFT.METHODS", "lora"], ["a list", "'lora'", "adapter"]),
    (["SOLVER.OPTIMIZER", "ADAM"], ["'ADAMW'", "'SGD'"]),
    (["MODEL.PEFT", "3"], ["section", "LORA"]),
    (["SEED"], ["SEED", "no value"]),
    (["SEED", "3", "--resume"], ["--resume", "before"]),
    (["MODEL.META_ARCHITECTURE", "GeneralizedRCN"], ["'GeneralizedRCN'", "GeneralizedRCNN?"]),
    (["MODEL.BACKBONE.NAME", "build_resnet_backbne"], ["'build_resnet_backbne'", "build_resnet_backbone?"]),
    (["MODEL.RESNETS.DEPTH", "51"], ["is 51", "50, 101"]),
    (["INPUT.MIN_SIZE_TRAIN", "(640, 0)"], ["(640, 0)", "at least 1"]),
    (["INPUT.MIN_SIZE_TEST", "-5"], ["-5", "at least 0"]),
    (["VERSIONS", "2"], ["VERSION?"]),
])
def test_refused_words(words, parts):
    refused(words, *parts)


def test_refused_files(tmp_path):
    loop = write(tmp_path, "loop.yaml", "_BASE_: other.yaml\n")
    write(tmp_path, "other.yaml", "_BASE_: loop.yaml\n")
    refused([], "circle", "other.yaml", files=[loop])
    twice = write(tmp_path, "twice.yaml", "SOLVER:\n  MAX_ITER: 1\n  BASE_LR: 1.0\n  MAX_ITER: 2\n")
    refused([], f"{twice}:4", "SOLVER.MAX_ITER", "line 2", files=[twice])
    refused([], "absent.yaml", "base.yaml", files=[write(tmp_path, "base.yaml", "_BASE_: absent.yaml\n")])
    refused([], "list", files=[write(tmp_path, "list.yaml", "- 1\n- 2\n")])
    refused([], "syntax.yaml:2", files=[write(tmp_path, "syntax.yaml", "SEED: 1\n MODEL: {\n")])


def test_infinite_numbers_and_old_versions_in_files(tmp_path):
    refused([], "a.yaml:2: SOLVER.BASE_LR is inf", files=[write(tmp_path, "a.yaml", "SOLVER:\n  BASE_LR: .inf\n")])
    old = write(tmp_path, "old.yaml", "VERSION: 1\nMODEL: {MASK_ON: True}\n")
    refused([], "old.yaml:1: VERSION is 1", "version 2", "merge_from_file", files=[old])


def test_python_tags_are_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    path = write(tmp_path, "evil.yaml", f"SEED: 1\nOUTPUT_DIR: !!python/object/apply:os.system ['touch {mark}']\n")
    refused([], f"{path}:2", "python/object/apply:os.system", files=[path])
    assert not mark.exists()
    safe = write(tmp_path, "tuple.yaml", "DATASETS:\n  TRAIN: !!python/tuple [a, b]\n")
    assert load_config(safe).DATASETS.TRAIN == ("a", "b")


def test_conversions_of_words_and_yaml():
    cfg = load_config([], [
        "MODEL.PEFT.METHODS", "[lora, adapter]", "MODEL.PEFT.LORA.ALPHA", "16", "INPUT.MIN_SIZE_TRAIN", "[1, 2]",
        "MODEL.MaskDINO.INITIALIZE_BOX_TYPE", "no", "SOLVER.AMP.ENABLED", "true", "SOLVER.BASE_LR", "1e-4",
    ])
    assert cfg.MODEL.PEFT.METHODS == ["lora", "adapter"] and cfg.MODEL.PEFT.LORA.ALPHA == 16
    assert cfg.INPUT.MIN_SIZE_TRAIN == (1, 2) and cfg.SOLVER.AMP.ENABLED is True and cfg.SOLVER.BASE_LR == 1e-4


def test_yaml_no_is_the_word_no(tmp_path):
    path = write(tmp_path, "a.yaml", "MODEL: {MaskDINO: {INITIALIZE_BOX_TYPE: no, DN: no}}\n")
    node = load_config(path).MODEL.MaskDINO
    assert node.INITIALIZE_BOX_TYPE == "no" and node.DN == "no"


def test_a_dump_loads_again(tmp_path):
    cfg = load_config([], ["MODEL.PEFT.METHODS", "['lora']", "SOLVER.STEPS", "(1, 2)"])
    again = load_config(write(tmp_path, "dump.yaml", cfg.dump()))
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


def test_tables_name_existing_keys():
    known = set(all_keys(load_config([])))
    assert set(CHOICES) <= known and set(RANGES) <= known


def test_defaults_are_allowed_values():
    cfg = load_config([])
    load_config([], [word for key in RANGES for word in (key, repr(_value(cfg, key)))])
    for key, allowed in CHOICES.items():
        value = _value(cfg, key)
        assert value == [] or value in allowed


def _value(cfg, key):
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def test_command_line_files_end_at_the_first_other_word():
    parser = config_parser("", json_output=True)
    args = parse(parser, ["--config-file", "a.yaml", "b.yml", "c.py", "--json", "SEED", "1", "OUTPUT_DIR", "x.yaml"])
    assert args.config_file == ["a.yaml", "b.yml", "c.py"] and args.json
    assert args.opts == ["SEED", "1", "OUTPUT_DIR", "x.yaml"]
    args = parse(parser, ["--config-file=a.yaml", "b.yaml", "SEED", "1"])
    assert args.config_file == ["a.yaml", "b.yaml"] and args.opts == ["SEED", "1"]
    args = parse(parser, ["--config-file", "a", "b.yaml", "SEED", "-1"])
    assert args.config_file == ["a", "b.yaml"] and args.opts == ["SEED", "-1"]


def test_options_may_stand_before_the_file_and_the_file_is_required():
    assert parse(config_parser("", json_output=True), ["--json", "--config-file", "a.yaml"]).opts == []
    with pytest.raises(SystemExit) as stop:
        parse(config_parser(""), ["SEED", "1"])
    assert stop.value.code == 2


@pytest.mark.parametrize("error, code", [
    (ConfigError("the value is 7"), 2), (TrainingError("stopped at 7"), 3), (defaults.Interrupted(15), 143),
    (KeyboardInterrupt(), 130), (ValueError("ours"), 1),
])
def test_exit_codes(error, code, capfd):
    def main(args):
        raise error

    assert run_tool(main, defaults.tool_parser(""), []) == code
    captured = capfd.readouterr().err
    assert ("Traceback" in captured) == (code == 1)
    assert captured.count("error:") == (0 if code > 100 else 1)
    if code > 100:
        assert captured == ""


def test_debug_adds_the_traceback(capfd):
    def main(args):
        raise ConfigError("seven")

    assert run_tool(main, defaults.tool_parser(""), ["--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_json_is_the_only_line_on_stdout(tmp_path):
    script = write(tmp_path, "tool.py", """
        import logging, os, sys
        from lowrank_d2.engine.defaults import config_parser, run_tool
        def main(args):
            logging.getLogger("detectron2.x").info("from detectron2")
            print("printed")
            os.system("echo from a child")
            return {"a": 1}
        sys.exit(run_tool(main, config_parser("", json_output=True)))
    """)
    done = subprocess.run([sys.executable, script, "--config-file", "a.yaml", "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and json.loads(done.stdout) == {"a": 1}
    for text in ("from detectron2", "printed", "from a child"):
        assert text in done.stderr


def test_what_a_project_logs_is_shown(tmp_path):
    script = write(tmp_path, "tool.py", """
        import logging, sys
        from lowrank_d2.engine.defaults import config_parser, run_tool
        def main(args):
            for package in ("lora_detr", "lors", "seem", "yolos"):
                logging.getLogger(package + ".meta_arch").info("one line of %s", package)
        sys.exit(run_tool(main, config_parser("")))
    """)
    done = subprocess.run([sys.executable, script, "--config-file", "a.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = [line.partition("one line of ")[2] for line in done.stdout.splitlines()]
    assert shown == ["lora_detr", "lors", "seem", "yolos"]


def test_settings_carry_their_line(tmp_path):
    path = write(tmp_path, "a.yaml", "MODEL:\n\n  DEVICE: cpu\n")
    assert read_settings(path) == [("MODEL.DEVICE", "cpu", f"{path}:3")]
    assert settings_of_words(["A.B", "1"]) == [("A.B", "1", "command line")]


def test_a_project_brings_its_keys_and_is_missed_by_name(tmp_path, monkeypatch):
    project = tmp_path / "projects" / "Some"
    write(tmp_path, "used.yaml", "MODEL:\n  META_ARCHITECTURE: SomeModel\n  SOME:\n    WIDTH: 7\n")
    monkeypatch.setattr(defaults, "PROJECTS", {"SomeModel": "Some/some_project_package"})
    monkeypatch.setattr(defaults, "__file__", str(tmp_path / "lowrank_d2" / "engine" / "defaults.py"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ConfigError, match=rf"SomeModel is the project Some, and {project} is not there"):
        load_config(str(tmp_path / "used.yaml"))
    package = project / "some_project_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(textwrap.dedent("""
        from detectron2.config import CfgNode
        from detectron2.modeling import META_ARCH_REGISTRY

        @META_ARCH_REGISTRY.register()
        class SomeModel:
            pass

        def add_config(cfg):
            cfg.MODEL.SOME = CfgNode({"WIDTH": 1})
    """))
    try:
        assert load_config(str(tmp_path / "used.yaml")).MODEL.SOME.WIDTH == 7
    finally:
        sys.modules.pop("some_project_package", None)
        defaults.META_ARCH_REGISTRY._obj_map.pop("SomeModel", None)
