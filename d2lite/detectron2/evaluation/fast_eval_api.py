"""The name under which a full Detectron2 has a C++ version of COCOeval."""
from pycocotools.cocoeval import COCOeval


class COCOeval_opt(COCOeval):
    """pycocotools' own evaluation, which gives the same numbers."""
