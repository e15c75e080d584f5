"""One registration by one peer, as its users would do it, run by a Python that has the peers installed.

    PYTHON tests/benchmarks/peers.py METHOD MM FIXED MOVING FIELD

Both images are resampled to cubes of MM first, which suits these programs best. FIELD becomes the whole way from fixed to
moving on FIXED's own grid (ITK's displacement field, LPS mm). Seconds, peak memory in GB and versions go to standard output
as json. The clock covers reading the cubes and registering; imports, resampling and the field's writing are outside.
"""

import json
import os
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import SimpleITK as sitk

PACKAGES = ("antspyx", "picsl_greedy", "itk-elastix", "convexAdam", "torch", "SimpleITK")


def ants(kind: str):
    """ANTs with its defaults. kind: Affine, or SyN, which begins with an affine registration of its own."""
    import ants

    def register(folder: Path):
        fixed, moving = (ants.image_read(str(folder / name)) for name in ("fixed.nii", "moving.nii"))
        found = ants.registration(fixed, moving, type_of_transform=kind, outprefix=str(folder / "ants_"))
        return lambda: chained(*reversed([read(path) for path in found["fwdtransforms"]]))

    return register


def greedy():
    """greedy as its quick start tells: affine from the image centres, then deformable, both by local correlation."""
    from picsl_greedy import Greedy3D

    def register(folder: Path):
        tool, images = Greedy3D(), f"-i {folder}/fixed.nii {folder}/moving.nii -m NCC 2x2x2 -n 100x50x10 -V 0"
        tool.execute(f"{images} -a -dof 12 -ia-image-centers -o {folder}/affine.mat")
        tool.execute(f"{images} -it {folder}/affine.mat -o {folder}/warp.nii.gz")

        def total():
            tool.execute(f"-rf {folder}/fixed.nii -rc {folder}/total.nii.gz -r {folder}/warp.nii.gz {folder}/affine.mat -V 0")
            return read(f"{folder}/total.nii.gz")

        return total

    return register


def elastix():
    """elastix with its default parameters, affine, then B-splines."""
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("affine", "bspline"):
        defaults = parameters.GetDefaultParameterMap(kind)
        if kind == "affine":
            defaults["AutomaticTransformInitialization"] = ("true",)
        parameters.AddParameterMap(defaults)
    itk.ElastixRegistrationMethod, itk.TransformixFilter  # noqa: B018 (itk loads what is named)

    def register(folder: Path):
        fixed, moving = (itk.imread(str(folder / name), itk.F) for name in ("fixed.nii", "moving.nii"))
        _, found = itk.elastix_registration_method(fixed, moving, parameter_object=parameters, log_to_console=False)

        def total():
            # without a folder of its own, transformix leaves deformationField.nii in the working one
            field = itk.transformix_deformation_field(moving, found, output_directory=str(folder))
            itk.imwrite(field, str(folder / "total.mha"))
            return read(folder / "total.mha")

        return total

    return register


def affine_convexadam():
    """ANTs' affine registration, then convexAdam with its defaults (MIND) on what it aligned."""
    import ants
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    def register(folder: Path):
        fixed, moving = (ants.image_read(str(folder / name)) for name in ("fixed.nii", "moving.nii"))
        found = ants.registration(fixed, moving, type_of_transform="Affine", outprefix=str(folder / "ants_"))
        aligned = [torch.from_numpy(i.numpy().astype(np.float32)) for i in (fixed, found["warpedmovout"])]
        shift = convex_adam_pt(*aligned, dtype=torch.float32, device=torch.device("cpu"))  # (X, Y, Z, 3) voxels
        return lambda: chained(read(found["fwdtransforms"][0]), of_voxels(shift, folder / "fixed.nii"))

    return register


METHODS = {"ants_affine": lambda: ants("Affine"), "ants_syn": lambda: ants("SyN"), "greedy": greedy, "elastix": elastix,
           "affine_convexadam": affine_convexadam}  # fmt: skip


def cubes(image: sitk.Image, mm: float) -> sitk.Image:
    """The image on cubes of mm that cover its field of view, with the same middle."""
    size = np.array(image.GetSize(), dtype=np.float64)
    number = np.maximum(np.ceil(size * image.GetSpacing() / mm - 1e-3), 1).astype(int).tolist()
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint(((size - 1) / 2).tolist()))
    axes = np.array(image.GetDirection()).reshape(3, 3)
    origin = middle - axes @ (mm * (np.array(number) - 1) / 2)
    low = float(sitk.GetArrayViewFromImage(image).min())
    return sitk.Resample(image, number, sitk.Transform(), sitk.sitkLinear, origin.tolist(), [mm] * 3, image.GetDirection(),
                         low, sitk.sitkFloat32)  # fmt: skip


def read(path: str | Path) -> sitk.Transform:
    """A transform from an affine's or a displacement field's file."""
    if str(path).endswith((".nii.gz", ".mha")):
        return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))
    return sitk.ReadTransform(str(path))


def chained(*parts: sitk.Transform) -> sitk.Transform:
    """One transform of many; a point goes through the last one first."""
    return sitk.CompositeTransform(list(parts))


def of_voxels(shift: np.ndarray, fixed: Path) -> sitk.Transform:
    """A displacement (X, Y, Z, 3) in voxels of the fixed image as a transform."""
    image = sitk.ReadImage(str(fixed))
    to_mm = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    vectors = np.ascontiguousarray((np.asarray(shift, dtype=np.float64) @ to_mm.T).transpose(2, 1, 0, 3))
    field = sitk.GetImageFromArray(vectors, isVector=True)
    field.CopyInformation(image)
    return sitk.DisplacementFieldTransform(field)


def versions() -> dict[str, str]:
    """The installed peers' versions."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main(method: str, mm: str, fixed: str, moving: str, out: str) -> None:
    """Register and write the field."""
    spoken = os.dup(1)
    os.dup2(2, 1)  # what the programs themselves print belongs to the messages
    register = METHODS[method]()
    own = sitk.ReadImage(fixed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path, image in (("fixed.nii", own), ("moving.nii", sitk.ReadImage(moving))):
            sitk.WriteImage(cubes(image, float(mm)), str(folder / path))
        started, before = time.perf_counter(), time.process_time()
        found = register(folder)
        seconds, cpu = time.perf_counter() - started, time.process_time() - before
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20  # GB, of this process alone
        field = sitk.TransformToDisplacementField(found(), sitk.sitkVectorFloat32, own.GetSize(), own.GetOrigin(),
                                                  own.GetSpacing(), own.GetDirection())  # fmt: skip
        sitk.WriteImage(field, out)
    told = {"seconds": seconds, "cpu_seconds": cpu, "peak_gb": peak, "cubes_mm": float(mm), "versions": versions()}
    os.write(spoken, (json.dumps(told) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
