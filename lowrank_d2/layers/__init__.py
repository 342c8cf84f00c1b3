"""Pieces that know nothing of configs, datasets or Detectron2: tensors in, tensors out."""
