"""LoRA-DETR as a Detectron2 project: importing registers models and backbone, `add_config` declares their keys."""
from lora_detr.config import add_config
from lora_detr.deformable_detr import DeformableDETR
from lora_detr.relation_detr import RelationDETR
from lora_detr.swin import SwinWithoutNorms

__all__ = ["DeformableDETR", "RelationDETR", "SwinWithoutNorms", "add_config"]
