"""Evaluators that Detectron2 lacks or has broken."""
