"""Package metadata. `detectron2` is deliberately no requirement: registries may hold a stranger's package of that name."""
from pathlib import Path

from setuptools import find_packages, setup

RUNTIME = [
    "torch>=2.10",
    "numpy>=1.26",
    "scipy>=1.10",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "yacs>=0.1.8",
    "omegaconf>=2.1",
    "pycocotools>=2.0.7",
    "cityscapesScripts>=2.2",
    "opencv-python-headless>=4.8",
    "pillow>=10",
    "safetensors>=0.4.3",
    "tensorboard>=2.12",
    "matplotlib>=3.7",
    "tqdm>=4.60",
    "tabulate>=0.9",
]
TEST = [
    "pytest>=8",
    "hypothesis>=6.100",
    "peft>=0.15",
    "transformers>=4.50",
    "onnx>=1.18",
    "onnxscript>=0.5",
    "onnxruntime>=1.20",
]

setup(
    name="lowrank_d2",
    version="0.1.0",
    description="Adapt large Detectron2 detectors and segmenters by training about one percent of them",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["lowrank_d2", "lowrank_d2.*"]),
    package_data={"lowrank_d2": ["assets/*"]},
    install_requires=RUNTIME,
    extras_require={"test": TEST},
)
