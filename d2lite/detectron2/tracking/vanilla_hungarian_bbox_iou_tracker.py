"""Tracking by optimal assignment of overlapping boxes; the name exists so that code can import it."""
from detectron2._lite import refused_class

VanillaHungarianBBoxIOUTracker = refused_class("VanillaHungarianBBoxIOUTracker", __name__)
