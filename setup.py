"""Package metadata. `detectron2` is deliberately no requirement: registries may hold a stranger's package of that name."""
import importlib
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

OPERATOR = Path("lowrank_d2", "layers", "ms_deform_attn")

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


def load_builders():
    """build.py and build_cuda.py of the operator, in empty packages: what the real ones import may not be installed yet."""
    for depth in range(len(OPERATOR.parts)):
        parts = OPERATOR.parts[: depth + 1]
        package = sys.modules[".".join(parts)] = ModuleType(".".join(parts))
        package.__path__ = [str(Path(__file__).parent.joinpath(*parts))]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in ("build", "build_cuda")]


builder, cuda_builder = load_builders()


class WithOperator(Distribution):
    """Belongs to this platform when the operator is compiled: pip must run without build isolation to let torch be seen."""

    def has_ext_modules(self):
        return builder.obstacle() is None


class BuildWithOperator(build_py):
    """An installation never fails for want of the operator: it is compiled at first use then, or PyTorch's form runs."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for recipe in (builder, cuda_builder) if cuda_builder.torch_has_cuda() else (builder,):
            try:
                print(f"compiled {recipe.build(Path(self.build_lib) / OPERATOR)}")
            except builder.BuildError as error:
                print(f"{recipe.LIBRARY} is not compiled now: {error}")


setup(
    name="lowrank_d2",
    version="0.1.0",
    description="Adapt large Detectron2 detectors and segmenters by training about one percent of them",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["lowrank_d2", "lowrank_d2.*"]),
    package_data={"lowrank_d2": ["assets/*"], "lowrank_d2.layers.ms_deform_attn": ["csrc/*/*"]},
    cmdclass={"build_py": BuildWithOperator},
    distclass=WithOperator,
    install_requires=RUNTIME,
    extras_require={"test": TEST},
)
