import logging

import pytest
from detectron2.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger


def test_file_and_terminal(tmp_path, capsys):
    logger = setup_logger(str(tmp_path / "sub"), name="some.package", abbrev_name="sp")
    logger.info("hello")
    logging.getLogger("some.package.module").warning("careful")
    assert setup_logger(str(tmp_path / "sub"), name="some.package", abbrev_name="sp") is logger
    assert len(logger.handlers) == 2 and not logger.propagate
    lines = (tmp_path / "sub" / "log.txt").read_text().splitlines()
    assert lines[0].endswith("] some.package INFO: hello") and lines[1].endswith(".module WARNING: careful")
    assert "hello" in capsys.readouterr().out


def test_other_ranks_write_their_own_file_only(tmp_path):
    logger = setup_logger(str(tmp_path / "out.log"), distributed_rank=2, name="rank.two")
    logger.info("here")
    assert len(logger.handlers) == 1 and "here" in (tmp_path / "out.log.rank2").read_text()


@pytest.fixture
def counted(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_log_first_n(counted):
    for index in range(3):
        log_first_n(logging.INFO, f"line {index}", n=2)
    for index in range(3):
        log_first_n(logging.INFO, "same", key="message")
        log_first_n(logging.INFO, "same", key=("caller", "message"))
    assert counted() == ["line 0", "line 1", "same", "same"]


def test_log_every(counted):
    for index in range(5):
        log_every_n(logging.INFO, f"n {index}", n=2)
    for index in range(3):
        log_every_n_seconds(logging.INFO, f"s {index}", n=60)
    assert counted() == ["n 0", "n 2", "n 4", "s 0"]


def test_the_logger_is_the_callers_module(caplog):
    log_first_n(logging.WARNING, "who")
    assert caplog.records[0].name == __name__


def test_small_table():
    table = create_small_table({"AP": 1.23456, "n": 2}).splitlines()
    assert [cell.strip() for cell in table[2].split("|")] == ["", "1.235", "2", ""]
