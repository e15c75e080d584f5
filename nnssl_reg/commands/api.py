"""Registration from Python: images in memory or files in, a result that warps images, labels and points out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl_reg.commands import model_choice
from nnssl_reg.commands.apply_transform import looks_like_labels
from nnssl_reg.commands.pair_features import Model
from nnssl_reg.commands.pair_memory import check_memory
from nnssl_reg.commands.pair_outputs import write_pair
from nnssl_reg.commands.pair_reader import check_names, checked_mask
from nnssl_reg.commands.pair_types import ImagePair, RegisteredPair, Side
from nnssl_reg.commands.register_pair import register_pair
from nnssl_reg.commands.registration_setup import device_called, make_setup
from nnssl_reg.evaluation.summary import Scores, judge
from nnssl_reg.geometry.affine import AffineTransform
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import check_same_grid, write_image
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.memory_images import from_image, to_image, to_labels
from nnssl_reg.imageio.pairs import Pair
from nnssl_reg.imageio.transforms import write_composite, write_field


@dataclass(frozen=True, eq=False, repr=False)
class Registration:
    """A registered pair.

    registered: all that was found; moving: as it was given, whose kind of image `warped` is; names: of both images.
    """

    registered: RegisteredPair
    moving: Any
    names: tuple[str, str]
    settings: dict

    def __repr__(self) -> str:
        length = self.field.vectors_mm.norm(dim=0)
        return (f"Registration({self.names[1]} onto {self.names[0]}, initial alignment {self.registered.alignment.name}, "
                f"displacement mean {float(length.mean()):.1f} mm, max {float(length.max()):.1f} mm)")  # fmt: skip

    @property
    def field(self) -> DisplacementField:
        """Fixed point p <-> moving point p + vectors_mm(p), on the fixed image's grid, initial alignment included."""
        return self.registered.field

    @cached_property
    def warped(self) -> Any:
        """The moving image on the fixed grid, float32, of the kind that the moving image was given as (a path: Image)."""
        return from_image(self.field.warp(self.registered.moving), self.moving)

    def apply(self, what: Any, label: bool | None = None) -> Any:
        """Points (N, 3) of the fixed image, RAS mm, to the moving image; or an image of the moving patient to the fixed grid.

        Images as `register` takes them; an array alone lies on the moving image's voxels. label: True nearest neighbour,
        values and type kept; False linear; None: labels if there are few values, all whole numbers from 0.
        """
        if _are_points(what):
            return self.field.apply_to_points(what)
        return from_image(self.field.warp(self._image_or_label(what, label)), what)

    def inverse(self, grid: Grid | None = None) -> DisplacementField:
        """The field that leads back, on the moving image's grid or another one."""
        return self.registered.inverse(self.registered.moving.grid if grid is None else grid)

    def scores(self, fixed_label: Any, moving_label: Any) -> Scores:
        """Dice and distances of labels of both images, and the field's regularity."""
        sides = (
            (fixed_label, "the fixed label", self.registered.fixed),
            (moving_label, "the moving label", self.registered.moving),
        )
        labels = [to_labels(label, name, image.grid) for label, name, image in sides]
        return judge(self.field, *labels)

    def save(self, folder: str | Path, name: str = "registration", figure: bool = True) -> dict[str, Path]:
        """Write what nnssl_register writes: NAME_warped.nii.gz, the transforms, NAME.json, NAME.png. Returns the files."""
        folder, done = Path(folder), self.registered
        pair = Pair(name, *map(Path, self.names))
        write_pair(folder, pair, done, self.settings, sum(done.seconds.values()), figure)
        sidecar = folder / f"{name}.json"
        return {"sidecar": sidecar} | {kind: folder / file for kind, file in read_json(sidecar)["files"].items()}

    def save_transform(self, path: str | Path) -> None:
        """Write the transform: .h5 an ITK composite, .nii.gz a displacement field (ITK, LPS mm)."""
        if str(path).lower().endswith((".h5", ".hdf5")):
            write_composite(path, self.registered.alignment.transform, self.registered.deformation)
        else:
            write_field(path, self.field)

    def save_warped(self, path: str | Path) -> None:
        """Write the warped moving image, as the file's ending says."""
        write_image(path, self.field.warp(self.registered.moving))

    def _image_or_label(self, what: Any, label: bool | None) -> Image:
        grid = self.registered.moving.grid
        if label is None and isinstance(what, Image):
            label = what.is_label
        if not label:
            image = to_image(what, "the image", grid)
            if label is False or not looks_like_labels(image.array):
                return image
        return to_labels(what, "the label", grid)


def register(
    fixed: Any,
    moving: Any,
    *,
    features: str | None = None,
    model: Model | str | Path | None = None,
    device: str | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    rigid_mask: Any = None,
    fixed_channel: str | None = None,
    moving_channel: str | None = None,
    initial: str | np.ndarray | AffineTransform | None = None,
    overrides: Mapping[str, Any] | None = None,
    regularisation: str | None = None,
    diffeomorphic: bool = False,
    settings: str | Path | None = None,
) -> Registration:
    """Bring `moving` onto `fixed`, with the defaults of nnssl_register. It draws no random numbers.

    Images: a path, an Image, a SimpleITK or nibabel image, or (array, affine or spacing); masks too, or an array alone on the
    voxels of its image. rigid_mask: regions of the fixed image that move as rigid bodies. features: "mind", "dino",
    "dino+mind", "auto" ("dino+mind" for CT beside another modality, else "mind"); default: what the model's card says,
    "dino+mind" for one trained here. model: what load_model takes or gave; default: the package's, if features need one.
    initial: "auto", "identity", "center", "moments", "affine", or a (4, 4) matrix, fixed world -> moving world, RAS mm.
    overrides: {"registration.iterations": 40}. regularisation: "weak", "medium", "strong". settings: a file of
    nnssl_tune_registration. Raises ValueError or OSError for what cannot be used.
    """
    on = device_called(device)
    sides = [_side(*given) for given in (("the fixed image", fixed, fixed_mask, fixed_channel),
                                         ("the moving image", moving, moving_mask, moving_channel))]  # fmt: skip
    if model is None:
        model = model_choice.packaged_model(features, on)
    elif not isinstance(model, Model):
        model = load_model(model, device)
    named = initial if isinstance(initial, str) else None
    start = None if initial is None or named else _transform(initial)
    texts = [f"{name}={_text(value)}" for name, value in (overrides or {}).items()]
    setup = make_setup([side.image.grid for side in sides], on, kind=features, model=model, init=named, overrides=texts,
                       regularisation=regularisation, diffeomorphic=diffeomorphic, settings=settings)  # fmt: skip
    pair = ImagePair(*sides)
    check_names(pair, set())
    if rigid_mask is not None:
        rigid = _mask(rigid_mask, "the rigid mask", pair.fixed.image, "there is no region to keep rigid")
        check_same_grid(pair.fixed.image, rigid, name="the fixed image", kind="rigid mask's voxels")
        pair = replace(pair, rigid_mask=rigid)
    check_memory("These images", [side.image.grid for side in sides], setup)
    done = register_pair(pair, setup.store(), setup.registration, is_diffeomorphic=diffeomorphic, start=start)
    return Registration(done, moving, tuple(side.name for side in sides), setup.record)


def load_model(folder: str | Path, device: str | None = None) -> Model:
    """The model in a folder of nnssl_train_dino, nnssl_export_model or nnssl_import_model, or the package's of that name."""
    return model_choice.load_model(model_choice.model_called(folder), device_called(device))


def _side(name: str, data: Any, mask: Any, channel: str | None) -> Side:
    image = to_image(data, name)
    if mask is not None:
        mask = _mask(mask, f"the mask of {name}", image)
        check_same_grid(image, mask, name=name, kind="mask voxels")
    return Side(image, str(data) if isinstance(data, (str, Path)) else name, channel, None, mask)


def _mask(mask: Any, name: str, image: Image, *so: str) -> Image:
    """A mask as given; an array alone lies on the image's voxels. so: what an empty one would mean."""
    return checked_mask(to_labels(mask, name, image.grid), name, *so)


def _transform(initial: Any) -> AffineTransform:
    return initial if isinstance(initial, AffineTransform) else AffineTransform(np.asarray(initial, dtype=np.float64))


def _text(value: Any) -> str:
    """A value as --set would have it."""
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def _are_points(what: Any) -> bool:
    """Whether this is an array, tensor or nested list (N, 3)."""
    if isinstance(what, torch.Tensor):
        return what.ndim == 2 and what.shape[1] == 3
    if isinstance(what, tuple) and len(what) == 2 and np.ndim(what[0]) == 3:
        return False  # (array, affine)
    return isinstance(what, (np.ndarray, list, tuple)) and np.ndim(what) == 2 and np.shape(what)[1] == 3
