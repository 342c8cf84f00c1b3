"""Datasets, their records, and loaders over them."""
from . import transforms  # isort: skip
from .build import (
    build_batch_data_loader, build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts,
    load_proposals_into_dataset, print_instances_class_histogram,
)
from .catalog import DatasetCatalog, Metadata, MetadataCatalog
from .common import DatasetFromList, MapDataset, ToIterableDataset
from .dataset_mapper import DatasetMapper
from . import datasets, samplers  # isort: skip
