import logging

import pytest

import detectron2
from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict


@pytest.fixture
def messages():
    """What detectron2.evaluation.testing logs, wherever the logger propagates to."""
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("detectron2.evaluation.testing")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield seen
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_csv(messages):
    print_csv_format({"bbox": {"AP": 12.34567, "AP50": 20.0, "AP-cat": 1.0}})
    assert messages == ["copypaste: Task: bbox", "copypaste: AP,AP50", "copypaste: 12.3457,20.0000"]


def test_flatten():
    assert flatten_results_dict({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a/b": 1, "a/c/d": 2, "e": 3}


class TestVerify:
    RESULTS = {"bbox": {"AP": 50.4, "AR": float("nan")}}

    def cfg(self, *expected):
        cfg = get_cfg()
        cfg.TEST.EXPECTED_RESULTS = list(expected)
        return cfg

    def test_as_expected(self):
        assert verify_results(self.cfg(["bbox", "AP", 50.0, 0.5]), self.RESULTS)
        assert verify_results(self.cfg(), self.RESULTS)

    @pytest.mark.parametrize("expected", [["bbox", "AP", 50.0, 0.3], ["bbox", "AR", 50.0, 60.0]])
    def test_off(self, expected):
        with pytest.raises(SystemExit) as error:
            verify_results(self.cfg(expected), self.RESULTS)
        assert error.value.code == 1

    @pytest.mark.skipif(
        getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
    )
    @pytest.mark.parametrize("expected", [["bbox", "AP75", 50, 60], ["segm", "AP", 50, 60]])
    def test_missing(self, expected):
        with pytest.raises(SystemExit) as error:
            verify_results(self.cfg(expected), self.RESULTS)
        assert error.value.code == 1
