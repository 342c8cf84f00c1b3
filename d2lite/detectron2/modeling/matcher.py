"""Matching of anchors to ground truth by overlap: a name only."""
from detectron2._lite import refused_class

Matcher = refused_class("Matcher", __name__)
