"""Models; importing `lowrank_d2` registers them with Detectron2."""
