"""Tracking by optimal assignment weighed by overlap; the name exists so that code which mentions it can be imported."""
from detectron2._lite import refused_class

IOUWeightedHungarianBBoxIOUTracker = refused_class("IOUWeightedHungarianBBoxIOUTracker", __name__)
