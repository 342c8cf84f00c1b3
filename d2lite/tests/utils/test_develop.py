import pytest
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.develop import create_dummy_class, create_dummy_func


def test_stand_ins_name_what_is_missing():
    Missing = create_dummy_class("Missing", "some_package")
    with pytest.raises(ImportError, match="some_package"):
        Missing()
    with pytest.raises(ImportError, match="some_package"):
        Missing.anything
    with pytest.raises(ImportError, match="one.*two"):
        create_dummy_func("missing", ["one", "two"])()


def test_env_report_names_the_libraries():
    report = collect_env_info()
    for name in ("detectron2", "PyTorch", "numpy", "fvcore", "PyTorch built with"):
        assert name in report
