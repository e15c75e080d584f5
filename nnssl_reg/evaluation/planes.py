"""The three planes of a volume as flat pictures, and figures laid out in inches without gaps."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.json_files import atomic_path

DPI = 110
GAP_IN, TITLE_IN, HEADER_IN = 0.04, 0.24, 0.2
CT_WINDOW_HU = (-160.0, 240.0)


@dataclass(frozen=True)
class View:
    """A plane of a canonical volume: its horizontal and vertical axes, the axis across, and what lies left and on top.

    Patients face the viewer: their right (and, from the side, their front) is on the left of the picture.
    """

    name: str
    across: int
    up: int
    normal: int
    left: str
    top: str


VIEWS = (View("axial", 0, 1, 2, "R", "A"), View("coronal", 0, 2, 1, "R", "S"), View("sagittal", 1, 2, 0, "A", "S"))


def cut(image: Image, view: View, centre) -> np.ndarray:
    """The plane of a canonical image through voxel `centre`: (C, across, up); across < up in every view."""
    return np.take(image.array, int(centre[view.normal]), axis=1 + view.normal)


def plane_grid(grid: Grid, view: View, centre) -> Grid:
    """The voxels of a canonical grid in the plane through voxel `centre`."""
    box = [[0, n] for n in grid.shape]
    box[view.normal] = [int(centre[view.normal]), int(centre[view.normal]) + 1]
    return grid.cropped(box)


def values_on(plane: Grid, image: Image, view: View) -> np.ndarray:
    """An image of any grid on a plane: (C, across, up); outside it its minimum, 0 for labels."""
    return np.squeeze(sampled_on(plane, image), axis=1 + view.normal)


def sampled_on(grid: Grid, image: Image) -> np.ndarray:
    """An image at the voxels of any other grid, (C, *shape), not smoothed; outside it its minimum, 0 for labels."""
    return DisplacementField(torch.zeros(3, *grid.shape), grid).warp(image).array


def height_over_width(grid: Grid, view: View) -> float:
    """Shape of a plane of a canonical grid in mm."""
    return grid.extent_mm[view.up] / grid.extent_mm[view.across]


def middle_mm(image: Image) -> np.ndarray:
    """Centre of mass of labels, or of the foreground of intensities, (3,) RAS mm; without either, of the grid."""
    mask = image.array[0] != 0 if image.is_label else foreground(image.array[0])
    if not mask.any():
        return image.grid.center_mm
    sums = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return image.grid.index_to_world([float((s * np.arange(len(s))).sum() / s.sum()) for s in sums])


def foreground(values: np.ndarray) -> np.ndarray:
    """Voxels brighter than 15 % of the way from the darkest to the brightest (2nd to 98th percentile)."""
    low, high = np.percentile(values[tuple(slice(None, None, max(1, n // 64)) for n in values.shape)], (2, 98))
    return values > low + 0.15 * (high - low)


def window_of(image: Image) -> tuple[float, float]:
    """Grey values to show as black and white: an abdominal window for HU, else 1st to 99.5th percentile of the foreground."""
    values = image.array[0][tuple(slice(None, None, max(1, n // 64)) for n in image.grid.shape)]
    low, high = float(values.min()), float(values.max())
    if low <= -500 and high > CT_WINDOW_HU[0]:
        return CT_WINDOW_HU
    inside = values[foreground(values)]
    if inside.size:
        high = float(np.percentile(inside, 99.5))
        low = min(low + 0.02 * (high - low), float(np.percentile(inside, 1)))
    return (low, high) if high > low else (low, low + 1)


def new_figure(width_in: float, height_in: float):
    """An empty matplotlib figure that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # matplotlib takes a second to load, and only figures need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def add_panel(figure, left_in: float, top_in: float, width_in: float, height_in: float):
    """Axes without frame at a place measured in inches from the top left corner."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((left_in / width, 1 - (top_in + height_in) / height, width_in / width, height_in / height))
    axes.set_axis_off()
    return axes


def add_text(figure, left_in: float, top_in: float, text: str, **style) -> None:
    """Text at a place measured in inches from the top left corner."""
    width, height = figure.get_size_inches()
    figure.text(left_in / width, 1 - top_in / height, text, va="top", **style)


def show(axes, plane: np.ndarray, view: View, spacing_mm, **style) -> None:
    """A plane (across, up) or (across, up, 3) in its true proportions, with letters for left and top."""
    axes.imshow(np.swapaxes(plane, 0, 1), origin="lower", aspect=spacing_mm[view.up] / spacing_mm[view.across], **style)
    axes.invert_xaxis()  # right and anterior are positive, and stand on the left


def add_letters(axes, view: View) -> None:
    """The patient's side at the left and at the top of a panel."""
    from matplotlib import patheffects  # loads with matplotlib, where figures are drawn

    edge = [patheffects.withStroke(linewidth=1.5, foreground="black")]
    style = {"transform": axes.transAxes, "color": "white", "fontsize": 7, "path_effects": edge}
    axes.text(0.015, 0.5, view.left, ha="left", va="center", **style)
    axes.text(0.5, 0.985, view.top, ha="center", va="top", **style)


def save(figure, path: str | Path) -> None:
    """Write a figure; a reader never sees half of it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
