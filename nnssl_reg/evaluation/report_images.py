"""The pictures of one pair for the report: slices of three planes, packed into few small images that a page can hold."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as Pixels
from PIL import features as pillow

from nnssl_reg.evaluation import planes
from nnssl_reg.evaluation.figures import component_colours
from nnssl_reg.evaluation.planes import VIEWS, View
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import resample

SLICES = 12  # of a plane at most
COLUMNS = 4  # of the tiles in a sheet
MARGIN = 0.04  # around the body, of its extent
MAX_PAIR_BYTES = 700_000  # of a pair's pictures in the page, so that 40 pairs take less than 30 MB
ATTEMPTS = ((256, 80), (256, 65), (224, 50), (176, 40), (128, 30), (64, 20))  # longest edge of a slice, quality
SPEED = 2  # of WebP, 0 to 6: half the time of its default, files 4 % larger
COARSE_EDGE = 72  # of maps that are smooth: field, Jacobian determinant, features
JACOBIAN_LOG2 = 1.5  # colours end at 2^-1.5 and 2^1.5
LETTERS = {0: "R", 1: "A", 2: "S"}


@dataclass(frozen=True)
class PairImages:
    """What is shown of a pair, all on the fixed image's grid but the features, which are on their cells, and apart_mm.

    before: the moving image after the initial alignment; field: the whole displacement; features: of fixed, before, warped;
    apart_mm: between the two directions' registrations. What is not there is None.
    """

    fixed: Image
    before: Image
    warped: Image
    field: DisplacementField
    fixed_label: Image | None = None
    before_label: Image | None = None
    warped_label: Image | None = None
    features: tuple[FeatureMap, ...] = ()
    apart_mm: Image | None = None


@dataclass(frozen=True)
class Sheet:
    """All slices of one plane in rows of COLUMNS tiles, as a data URI."""

    width: int
    height: int
    data: str


@dataclass(frozen=True)
class PlaneSheets:
    """One plane: its name, the letters at its left and top, that of rising positions, its size, and its sheets by content."""

    name: str
    left: str
    top: str
    letter: str
    width_mm: float
    height_mm: float
    positions_mm: tuple[float, ...]
    sheets: dict[str, Sheet]


@dataclass(frozen=True)
class PairPictures:
    """The pictures of a pair. displacement_mm, jacobian_log2, apart_mm: what the ends of the coded maps mean.

    Sheets: fixed, before, warped (grey); *_label (0, or 1 + the place in label_ids); *_features (colours); field (red, green:
    displacement to the right and up, 128 is 0 and 255 is displacement_mm; blue: log2 of the Jacobian determinant, 0 where it
    folds); apart (0 to apart_mm and more).
    """

    planes: tuple[PlaneSheets, ...]
    label_ids: tuple[int, ...]
    displacement_mm: float
    jacobian_log2: float
    apart_mm: float


def pair_pictures(images: PairImages, max_bytes: int = MAX_PAIR_BYTES) -> PairPictures:
    """The pictures as large and as good as max_bytes allow; the smallest and poorest take what they take."""
    pair, size, tried = _Pair(images), 0, None
    for attempt in ATTEMPTS:
        if tried and attempt != ATTEMPTS[-1] and _expected(size, tried, attempt) > max_bytes:
            continue
        edge, quality = attempt
        if not tried or edge != tried[0]:
            tiles = pair.tiles(edge)
        pictures, tried = pair.encoded(tiles, quality), attempt
        size = size_of(pictures)
        if size <= max_bytes:
            break
    return pictures


def _expected(size: int, tried: tuple[int, int], attempt: tuple[int, int]) -> float:
    """About the size of another attempt, from that of the one that was tried."""
    return size * (attempt[0] / tried[0]) ** 1.5 * (attempt[1] / tried[1]) ** 0.5


def size_of(pictures: PairPictures) -> int:
    """Characters of all data URIs."""
    return sum(len(sheet.data) for plane in pictures.planes for sheet in plane.sheets.values())


class _Pair:
    """What does not depend on the size of the pictures, computed once; and slices of any size of it."""

    def __init__(self, images: PairImages):
        self.images, self.grid = images, images.fixed.grid.canonical()
        self.box = body_box(images.fixed.canonical())
        self.extent = np.diff(self.box, axis=1)[:, 0] * np.array(self.grid.spacing_mm)
        self.label_ids = _label_ids(images)
        self.windows = {"fixed": planes.window_of(images.fixed), "before": planes.window_of(images.before)}
        self.windows["warped"] = self.windows["before"]
        vectors = _along_axes(images.field.on(self.grid.with_spacing(self.extent.max() / COARSE_EDGE)))
        self.displacement_mm = max(float(np.abs(vectors.array).max()), 1e-3)
        apart = images.apart_mm
        self.apart_mm = 1.0 if apart is None else max(float(np.percentile(apart.array, 90)), 0.1)
        jacobian = images.field.jacobian_determinant().cpu().numpy()[None].astype(np.float32)
        self.smooth = {"vectors": vectors, "jacobian": Image(jacobian, images.field.grid), "apart": apart}
        coloured = component_colours([images.fixed] * len(images.features), images.features) if images.features else []
        self.smooth |= {f"{name}_features": colour for name, colour in zip(self.windows, coloured)}

    def tiles(self, edge: int) -> dict[str, dict[str, np.ndarray]]:
        """The slices as arrays (N, rows, columns[, 3]) uint8 by plane and content; edge: longest, in pixels."""
        return {view.name: self._plane(view, self.extent.max() / edge) for view in VIEWS}

    def _plane(self, view: View, step_mm: float) -> dict[str, np.ndarray]:
        lattice = self._lattice(view)
        spacing = np.array(lattice.spacing_mm)
        fine = max(step_mm, min(spacing[view.across], spacing[view.up]))
        coarse = max(fine, self.extent.max() / COARSE_EDGE)
        on = [lattice.with_spacing(_in_plane(spacing, view, step)) for step in (fine, coarse)]
        tiles = {}
        for name, window in self.windows.items():
            tiles[name] = _grey(self._cut(name, view, lattice, on[0]), window)
            label = self._cut(f"{name}_label", view, lattice, on[0])
            if label is not None:
                tiles[f"{name}_label"] = _numbered(label, self.label_ids)
        maps = {name: planes.sampled_on(on[1], image) for name, image in self.smooth.items() if image is not None}
        tiles |= {name: _byte(v) for name, v in maps.items() if name.endswith("_features")}
        tiles["field"] = _coded(maps, view, self.displacement_mm)
        if "apart" in maps:
            tiles["apart"] = _byte(maps["apart"] / self.apart_mm)
        return {name: _upright(values, view) for name, values in tiles.items()}

    def slices(self, view: View) -> range:
        """Evenly spaced slices through the body, its very ends left out."""
        low, high = (int(end) for end in self.box[view.normal])
        step = -(-(high - low) // SLICES)
        count = (high - low) // step
        first = low + (high - low - 1 - step * (count - 1)) // 2
        return range(first, first + step * count, step)

    def _lattice(self, view: View) -> Grid:
        """The voxels of the slices within the box."""
        slices, box = self.slices(view), self.box.copy()
        box[view.normal] = slices.start, slices.start + 1
        first, steps, shape = self.grid.cropped(box), np.ones(4), np.diff(box, axis=1)[:, 0]
        steps[view.normal], shape[view.normal] = slices.step, len(slices)
        return Grid(tuple(shape.tolist()), first.affine * steps)

    def _cut(self, name: str, view: View, lattice: Grid, grid: Grid) -> np.ndarray | None:
        """The slices of an image of the pair on `grid`, (C, *shape)."""
        image = getattr(self.images, name)
        if image is None:
            return None
        slices, part = self.slices(view), [slice(*ends) for ends in self.box]
        part[view.normal] = slice(slices.start, slices.stop, slices.step)
        return resample(Image(image.canonical().array[(slice(None), *part)].copy(), lattice), grid).array

    def encoded(self, tiles: dict[str, dict[str, np.ndarray]], quality: int) -> PairPictures:
        out = []
        for view in VIEWS:
            sheets = {name: _sheet(slices, None if _is_coded(name) else quality) for name, slices in tiles[view.name].items()}
            index = np.tile((np.array(self.grid.shape) - 1) / 2, (len(self.slices(view)), 1))
            index[:, view.normal] = self.slices(view)
            positions = self.grid.index_to_world(index)[:, view.normal].round(1)
            out.append(PlaneSheets(view.name, view.left, view.top, LETTERS[view.normal], float(self.extent[view.across]),
                                   float(self.extent[view.up]), tuple(positions.tolist()), sheets))  # fmt: skip
        return PairPictures(tuple(out), self.label_ids, self.displacement_mm, JACOBIAN_LOG2, self.apart_mm)


def body_box(image: Image) -> np.ndarray:
    """[[start, stop], ...] around the bright part of a canonical image, with a margin; specks do not count."""
    mask, box = planes.foreground(image.array[0]), []
    for axis, count in enumerate(image.grid.shape):
        area = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        inside = np.flatnonzero(area > 0.02 * area.max()) if mask.any() else np.array([0, count - 1])
        margin = int(np.ceil(MARGIN * (inside[-1] + 1 - inside[0])))
        box.append([max(0, inside[0] - margin), min(count, inside[-1] + 1 + margin)])
    return np.array(box)


def _along_axes(field: DisplacementField) -> Image:
    """Displacement in mm along the canonical axes of the field's grid, as an image."""
    directions = field.grid.canonical().affine[:3, :3] / np.array(field.grid.canonical().spacing_mm)
    vectors = torch.einsum("ij,jxyz->ixyz", torch.from_numpy(np.linalg.inv(directions)).float(), field.vectors_mm.cpu())
    return Image(vectors.numpy().astype(np.float32), field.grid)


def _label_ids(images: PairImages) -> tuple[int, ...]:
    labels = [image for image in (images.fixed_label, images.warped_label) if image is not None]
    return tuple(sorted({int(i) for image in labels for i in np.unique(image.array)} - {0}))[:255]


def _in_plane(spacing: np.ndarray, view: View, step: float) -> np.ndarray:
    out = np.full(3, step)
    out[view.normal] = spacing[view.normal]
    return out


def _grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return _byte((values - low) / (high - low))


def _byte(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)


def _numbered(labels: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    """0 for background and unknown ids, else 1 + the place in ids."""
    out = np.zeros(labels.shape, dtype=np.uint8)
    for place, label in enumerate(ids, 1):
        out[labels == label] = place
    return out


def _coded(maps: dict[str, np.ndarray], view: View, displacement_mm: float) -> np.ndarray:
    """Red, green, blue as PairPictures says; the picture's right and up are against the axes and along them."""
    across, up = maps["vectors"][view.across], maps["vectors"][view.up]
    jacobian = maps["jacobian"][0]
    log2 = np.log2(np.maximum(jacobian, 1e-6)) / JACOBIAN_LOG2
    blue = np.where(jacobian <= 0, 0, 128 + np.rint(127 * np.clip(log2, -1, 1)))
    signed = [128 + np.rint(127 * np.clip(v / displacement_mm, -1, 1)) for v in (-across, up)]
    return np.stack([*signed, blue]).astype(np.uint8)


def _upright(values: np.ndarray, view: View) -> np.ndarray:
    """(C, X, Y, Z) -> (N, rows, columns) or (N, rows, columns, 3) as seen: left and top first."""
    picture = values.transpose(1 + view.normal, 1 + view.up, 1 + view.across, 0)[:, ::-1, ::-1]
    return picture[..., 0] if picture.shape[3] == 1 else picture


def _is_coded(name: str) -> bool:
    return name.endswith("_label") or name in ("field", "apart")


def _sheet(tiles: np.ndarray, quality: int | None) -> Sheet:
    """Tiles (N, rows, columns[, 3]) as one image; quality None: exact."""
    count, height, width = tiles.shape[:3]
    rows = -(-count // COLUMNS)
    sheet = np.zeros((rows * height, COLUMNS * width, *tiles.shape[3:]), dtype=np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // COLUMNS * height, i % COLUMNS * width
        sheet[top : top + height, left : left + width] = tile
    webp = pillow.check("webp")
    kind = "WEBP" if webp else "PNG" if quality is None else "JPEG"
    options = {"lossless": True} if webp and quality is None else {} if quality is None else {"quality": quality}
    options |= {"method": SPEED} if webp else {}
    stream = io.BytesIO()
    Pixels.fromarray(sheet).convert("RGB").save(stream, kind, **options)
    return Sheet(width, height, f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}")
