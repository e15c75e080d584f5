"""The models that are there: those that come with the package, and those in nnssl_results, trained here or imported."""

from importlib.resources import files
from pathlib import Path

from nnssl_reg.imageio.model_folder import is_shared_model


def packaged_models() -> list[Path]:
    """The folders of the models that come with the package, the one to be used by default first (by name)."""
    folder = Path(str(files("nnssl_reg"))) / "weights"
    return sorted(path for path in folder.iterdir() if is_shared_model(path)) if folder.is_dir() else []


def models_in(results: Path) -> list[Path]:
    """The folders of usable models in the folder of results: with a checkpoint, or imported."""
    folders = sorted(path for path in results.glob("Dataset*/*__*__*") if path.is_dir())
    return [path for path in folders if is_shared_model(path) or any(path.glob("checkpoint_*.json"))]
