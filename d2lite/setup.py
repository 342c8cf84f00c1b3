"""The light runtime: a distribution named `detectron2`, so that pip swaps it with the real one and never mixes them."""
import shutil
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent

# A plain install leaves build/ behind, and the next one would bring back modules that have been deleted since.
shutil.rmtree(HERE / "build", ignore_errors=True)

setup(
    name="detectron2",
    version="0.6+lite",
    description="The part of Detectron2's public API that detection and segmentation extensions use, in pure Python",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["detectron2", "detectron2.*"]),
    install_requires=[
        "torch>=2.10",
        "numpy>=1.26",
        "scipy>=1.10",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.9",
        "yacs>=0.1.8",
        "omegaconf>=2.1",
        "pycocotools>=2.0.7",
        "opencv-python-headless>=4.8",
        "pillow>=10",
        "shapely>=2",
        "tensorboard>=2.12",
        "matplotlib>=3.7",
        "tqdm>=4.60",
        "tabulate>=0.9",
        "termcolor>=1.1",
        "cloudpickle>=2",
        "packaging>=21",
    ],
)
