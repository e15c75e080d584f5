"""Package metadata of nnssl_reg: name, dependencies, extras, console scripts."""

import ast
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
tree = ast.parse((HERE / "nnssl_reg" / "commands" / "arguments.py").read_text(encoding="utf-8"))
table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "COMMANDS")
SCRIPTS = [key.value for key in table.keys]

setup(
    name="nnssl_reg",
    version="0.1.0",
    description="Self-configuring deformable registration of CT and MR with features learned from your own unlabelled scans",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nnssl_reg", "nnssl_reg.*"]),
    package_data={"nnssl_reg.evaluation": ["report_page/*"], "nnssl_reg": ["weights/*", "weights/*/*"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "numpy>=1.26",
        "nibabel>=5.2",
        "SimpleITK>=2.3",
        "dynamic-network-architectures>=0.4.2",
        "timm>=1.0.15",
        "batchgenerators>=0.25.1",
        "acvl-utils>=0.2.3",
        "blosc2>=3.0",
        "numba>=0.60",
        "scipy>=1.11",
        "isal>=1.5",
        "safetensors>=0.4.3",
        "einops>=0.7",
        "tqdm>=4.66",
        "psutil>=5.9",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "pillow>=10",
    ],
    extras_require={
        "dask": ["distributed>=2024.8"],
        "test": [
            "pytest>=8",
            "ruff>=0.8",
            "antspyx>=0.5",
            "surface-distance>=0.1",
            "batchgeneratorsv2>=0.3.0",
            "distributed>=2024.8",
        ],
    },
    entry_points={"console_scripts": [f"{name} = nnssl_reg.commands.entry:script" for name in SCRIPTS]},
)
