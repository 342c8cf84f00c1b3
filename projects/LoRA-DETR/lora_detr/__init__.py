"""LoRA-DETR as a Detectron2 project: importing registers the models, `add_config` declares their keys."""
from lora_detr.config import add_config
from lora_detr.deformable_detr import DeformableDETR
from lora_detr.relation_detr import RelationDETR

__all__ = ["DeformableDETR", "RelationDETR", "add_config"]
