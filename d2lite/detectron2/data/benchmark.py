"""Measuring the data pipeline is not in the lite runtime; these names refuse when called."""
from detectron2._lite import refused, refused_class

DataLoaderBenchmark = refused_class("DataLoaderBenchmark", __name__)
iter_benchmark = refused("iter_benchmark", __name__)
