import json
import logging
import threading

import pytest
import torch

import detectron2
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)

mended = pytest.mark.skipif(
    getattr(detectron2, "__runtime__", None) != "lite", reason="a defect of Detectron2 that the lite runtime mends"
)


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestEventStorage:
    def test_only_the_innermost_is_current(self):
        assert not has_event_storage()
        with pytest.raises(AssertionError):
            get_event_storage()
        with EventStorage() as outer, EventStorage() as inner:
            assert get_event_storage() is inner
            assert outer is not inner
        assert not has_event_storage()

    def test_left_by_an_exception(self):
        with pytest.raises(KeyError), EventStorage():
            raise KeyError
        assert not has_event_storage()

    def test_scalars_know_their_iteration(self):
        with EventStorage(start_iter=5) as storage:
            storage.put_scalar("a", torch.tensor(2.0))
            storage.step()
            storage.put_scalars(a=4, b=1)
            storage.put_scalar("c", 9, cur_iter=2)
        assert storage.iter == storage.iteration == 6
        assert storage.latest() == {"a": (4.0, 6), "b": (1.0, 6), "c": (9.0, 2)}
        assert storage.history("a").values() == [(2.0, 5), (4.0, 6)]
        with pytest.raises(KeyError):
            storage.history("nothing")

    def test_a_hint_never_changes(self):
        with EventStorage() as storage:
            storage.put_scalar("lr", 1, smoothing_hint=False)
            with pytest.raises(AssertionError, match="lr"):
                storage.put_scalar("lr", 1)
        assert storage.smoothing_hints() == {"lr": False}

    def test_hinted_scalars_give_the_median_over_iterations(self):
        with EventStorage() as storage:
            for iteration, value in ((0, 100.0), (10, 1.0), (28, 3.0), (29, 5.0)):
                storage.put_scalar("smooth", value, cur_iter=iteration)
                storage.put_scalar("last", value, cur_iter=iteration, smoothing_hint=False)
        # 20 iterations end with 29: 10 .. 29
        assert storage.count_samples("smooth", 20) == 3
        assert storage.count_samples("smooth", 19) == 2
        assert storage.latest_with_smoothing_hint(20) == {"smooth": (3.0, 29), "last": (5.0, 29)}
        assert storage.latest_with_smoothing_hint(1)["smooth"] == (5.0, 29)

    def test_name_scopes(self):
        with EventStorage() as storage:
            with storage.name_scope("a/"):
                storage.put_scalar("x", 1)
                with storage.name_scope("b"):
                    storage.put_scalar("x", 2)
                storage.put_scalar("y", 3)
            storage.put_scalar("x", 4)
        assert {name: value for name, (value, _) in storage.latest().items()} == {"a/x": 1, "b/x": 2, "a/y": 3, "x": 4}

    @mended
    def test_a_name_scope_ends_with_an_exception(self):
        with EventStorage() as storage:
            with pytest.raises(KeyError), storage.name_scope("a"):
                raise KeyError
            storage.put_scalar("x", 1)
        assert list(storage.latest()) == ["x"]

    @mended
    def test_reading_while_a_thread_stores(self):
        storage = EventStorage()
        stop = threading.Event()

        def store():
            number = 0
            while not stop.is_set() and number < 500:
                storage.put_scalar(f"name{number}", number)
                number += 1

        thread = threading.Thread(target=store)
        thread.start()
        try:
            for _ in range(30):
                values = storage.latest_with_smoothing_hint()
                assert all(value == float(name[4:]) for name, (value, _) in values.items())
        finally:
            stop.set()
            thread.join()


class TestJSONWriter:
    def test_a_line_for_every_iteration_with_news(self, tmp_path):
        path = tmp_path / "metrics.json"
        with EventStorage() as storage:
            writer = JSONWriter(str(path))
            for iteration in range(40):
                storage.put_scalar("loss", iteration)
                if iteration == 25:
                    storage.put_scalar("AP", 3.5, smoothing_hint=False)
                if iteration % 20 == 19:
                    writer.write()
                storage.step()
            writer.write()
            writer.close()
        lines = read_lines(path)
        assert lines == [
            {"iteration": 19, "loss": 9.5},
            {"iteration": 39, "loss": 29.5},
            {"iteration": 25, "AP": 3.5},
        ]
        assert path.read_text().startswith('{"iteration": 19, "loss": 9.5}\n')

    def test_appends(self, tmp_path):
        path = tmp_path / "metrics.json"
        for value in (1, 2):
            with EventStorage() as storage:
                storage.put_scalar("x", value)
                writer = JSONWriter(str(path))
                writer.write()
                writer.close()
        assert [line["x"] for line in read_lines(path)] == [1, 2]

    @mended
    def test_writes_json_even_for_nan(self, tmp_path):
        path = tmp_path / "metrics.json"
        with EventStorage() as storage:
            storage.put_scalars(nan=float("nan"), infinite=float("-inf"), fine=1)
            writer = JSONWriter(str(path))
            writer.write()
            writer.close()
        assert read_lines(path) == [{"fine": 1.0, "infinite": None, "iteration": 0, "nan": None}]


class TestCommonMetricPrinter:
    @pytest.fixture
    def line(self, caplog, monkeypatch):
        """Calls write and returns the one line logged, or None."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        logger = logging.getLogger("detectron2.utils.events")
        logger.addHandler(caplog.handler)
        caplog.set_level(logging.INFO, logger=logger.name)

        def write(writer):
            caplog.clear()
            writer.write()
            return caplog.messages[0] if caplog.messages else None

        yield write
        logger.removeHandler(caplog.handler)

    def test_format(self, line):
        with EventStorage(8) as storage:
            storage.put_scalar("lr", 0.00123456789, smoothing_hint=False)
            storage.put_scalars(total_loss=1.23456, loss_b=2e-7, other=3)
            storage.put_scalar("[metric]q", 0.5)
            storage.put_scalars(time=1.5, data_time=0.25)
            assert line(CommonMetricPrinter(100)) == (
                " eta: 0:02:16  iter: 8  total_loss: 1.235  loss_b: 2e-07  [metric]q: 0.5  time: 1.5000  "
                "last_time: 1.5000  data_time: 0.2500  last_data_time: 0.2500   lr: 0.0012346  "
            )
        assert storage.latest()["eta_seconds"] == (136.5, 8)

    def test_format_with_little_to_say(self, line):
        with EventStorage():
            assert line(CommonMetricPrinter()) == " iter: 0       lr: N/A  "

    def test_what_is_averaged_over_what(self, line):
        with EventStorage() as storage:
            for value in (100, 1, 2, 9):
                storage.put_scalars(loss=value, time=value, data_time=value)
                storage.step()
            text = line(CommonMetricPrinter(window_size=3))
        assert " loss: 2 " in text  # median of the window
        assert " time: 28.0000  last_time: 9.0000" in text  # mean of the run
        assert " data_time: 4.0000  last_data_time: 9.0000" in text  # mean of the window

    def test_silent_after_training(self, line):
        with EventStorage(10):
            assert line(CommonMetricPrinter(10)) is None

    def test_estimates_the_end_without_time(self, line):
        with EventStorage() as storage:
            printer = CommonMetricPrinter(10)
            assert "eta" not in line(printer)
            storage.step()
            assert " eta: 0:00:00  iter: 1" in line(printer)


def test_tensorboard_takes_images_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with EventStorage() as storage:
        writer = TensorboardXWriter(str(tmp_path))
        storage.put_scalar("loss", 0.5)
        storage.put_image("picture", torch.zeros(3, 4, 5))
        storage.put_histogram("weights", torch.arange(10.0), bins=3)
        writer.write()
        storage.step()
        storage.put_image("picture", torch.zeros(3, 4, 5))
        storage.clear_images()
        writer.write()
        writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.5)]
    (image,) = events.Images("picture")
    assert (image.height, image.width) == (4, 5)
    (histogram,) = events.Histograms("weights")
    assert histogram.histogram_value.bucket == [3, 3, 4]
    assert histogram.histogram_value.sum == 45
