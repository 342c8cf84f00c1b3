"""Backbones: ResNet, FPN and Swin; the names of the others need a full Detectron2."""
from . import utils
from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone
from .fpn import FPN
from .mvit import MViT
from .regnet import RegNet
from .resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet, ResNetBlockBase, build_resnet_backbone, make_stage
from .swin import SwinTransformer
from .vit import SimpleFeaturePyramid, ViT, get_vit_lr_decay_rate
