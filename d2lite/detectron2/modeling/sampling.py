"""Subsampling of labelled anchors: a name only."""
from detectron2._lite import refused

__all__ = ["subsample_labels"]

subsample_labels = refused("subsample_labels", __name__)
