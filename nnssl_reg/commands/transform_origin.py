"""What a transform file is: by the sidecar that nnssl_register wrote beside it, else by its name."""

from dataclasses import dataclass
from pathlib import Path

from nnssl_reg.imageio.json_files import read_json

BACK = "inverse_field"
STEPS = {  # parts of a way, which lead nowhere alone
    "ants_affine": "a step of the way from the fixed to the moving image: the warp, then the affine",
    "ants_warp": "a step of the way from the fixed to the moving image: the warp, then the affine",
    "ants_inverse_warp": "a step of the way back, after the inverse of the affine beside it",
}
AFFINE = "0GenericAffine.mat"
NAMED = {f"_{BACK}.nii.gz": BACK, "1Warp.nii.gz": "ants_warp", "1InverseWarp.nii.gz": "ants_inverse_warp"}


@dataclass(frozen=True)
class Origin:
    """kind: of the file, as sidecars call it, None where nothing tells; source: what tells, in words; files: of its pair."""

    kind: str | None
    source: str
    files: dict[str, str]


def origin_of(path: Path) -> Origin:
    """What a transform file is. By its name alone ANTs' warps are steps where their affine lies beside them."""
    for sidecar in sorted(path.parent.glob("*.json")):
        if not path.name.startswith((sidecar.stem, "disp_")):  # Learn2Reg's names are not made of the pair's
            continue
        told = read_json(sidecar)
        files = told.get("files") if isinstance(told, dict) else None
        kind = next((k for k, name in files.items() if name == path.name), None) if isinstance(files, dict) else None
        if kind is not None:
            images = "" if kind in STEPS else f": fixed {told.get('fixed')}, moving {told.get('moving')}"
            return Origin(kind, f"{sidecar.name}{images}", files)
    for ending, kind in NAMED.items():
        affine = path.with_name(path.name.removesuffix(ending) + AFFINE)
        if path.name.endswith(ending) and (kind == BACK or affine.is_file()):
            return Origin(kind, f"by its name{'' if kind == BACK else f', beside {affine.name}'}", {})
    return Origin(None, "the file itself does not say", {})


def goes_back(path: Path) -> bool:
    """Whether a whole transform leads from the moving to the fixed image. Raises ValueError for a step alone."""
    origin = origin_of(path)
    if origin.kind not in STEPS:
        return origin.kind == BACK
    whole = [origin.files[kind] for kind in ((BACK,) if "inverse" in origin.kind else ("field", "transform"))
             if kind in origin.files]  # fmt: skip
    way_out = (f"give the whole one, {path.parent / whole[0]}" if whole else
               "give the whole way: a field (.nii.gz) or composite (.h5) of nnssl_register, or one field of both steps, "
               "antsApplyTransforms -o [FIELD.nii.gz,1]")  # fmt: skip
    raise ValueError(f"{path} is {STEPS[origin.kind]} ({origin.source}). Alone it maps nothing; {way_out}.")
