"""Pictures: a registered pair, learned features as colours, the course of a training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from nnssl_reg.evaluation import planes
from nnssl_reg.evaluation.planes import GAP_IN, HEADER_IN, TITLE_IN, VIEWS, View
from nnssl_reg.geometry.displacement import DisplacementField
from nnssl_reg.geometry.grid import Grid
from nnssl_reg.geometry.image import FeatureMap, Image
from nnssl_reg.geometry.sampling import sample_points

COLUMNS = ("fixed", "moving", "moving, warped", "fixed / warped", "deformation")
PANEL_IN = 2.6
GRID_LINES = 24  # across the longer side of a plane
CHECKERS = 8
COLOURS = ("#e6194b", "#3cb44b", "#ffe119", "#4c8dff", "#f58231", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe", "#9a6324")
ENOUGH_CELLS = 50_000  # of an image, from which the colours of its features are found
PANELS = (  # title, and what the names of its curves contain
    ("losses", ("loss",)),
    ("probe: share found within one token, Dice, error in mm (right)", ("probe_",)),
    ("learning rate", ("learning_rate",)),
    ("teacher temperature, momentum (right)", ("temperature", "momentum")),
    ("token spread", ("spread",)),
    ("effective rank", ("rank",)),
    ("teacher entropy, gradient norm (right)", ("entropy", "gradient_norm")),
    ("samples per second", ("samples_per_second",)),
)
LN_K = ("losses", "teacher entropy, gradient norm (right)")  # panels where it is drawn
RIGHT = ("momentum", "error_mm", "gradient_norm")  # curves on the right axis
LONG_NAMES = ("loss_", "_loss", "teacher_", "spread_", "_spread", "probe_")


def registration_figure(path: str | Path, fixed: Image, moving: Image, warped: Image, field: DisplacementField, title: str,
                        fixed_label: Image | None = None, moving_label: Image | None = None,
                        warped_label: Image | None = None) -> None:  # fmt: skip
    """Three planes (rows) of fixed, moving, warped, a checkerboard of fixed and warped, and the deformed grid over warped.

    moving: after the initial alignment. All are shown where they are in the world, on whatever grid they come. field: its
    lines are where straight lines of the moving image end up. With labels, contours: each image's own in colours, the
    fixed image's in white dots on the others.
    """
    grid = fixed.grid.canonical()
    middle_mm = planes.middle_mm(fixed if fixed_label is None else fixed_label)
    centre = np.clip(np.rint(grid.world_to_index(middle_mm)), 0, np.array(grid.shape) - 1).astype(int)
    heights = [PANEL_IN * min(max(planes.height_over_width(grid, view), 0.25), 1.6) for view in VIEWS]
    lines = title.splitlines()
    top = TITLE_IN * len(lines) + HEADER_IN
    width = (PANEL_IN + GAP_IN) * len(COLUMNS) + GAP_IN
    figure = planes.new_figure(width, top + sum(heights) + GAP_IN * len(heights))
    for i, line in enumerate(lines):
        planes.add_text(figure, GAP_IN + 0.02, 0.05 + TITLE_IN * i, line, fontsize=10 if i else 11, parse_math=False)
    for column, name in enumerate(COLUMNS):
        planes.add_text(figure, GAP_IN + (PANEL_IN + GAP_IN) * column + 0.02, top - 0.17, name, fontsize=9, color="#444444")
    windows = [planes.window_of(image) for image in (fixed, moving, warped)]
    for view, height in zip(VIEWS, heights):
        lefts = [GAP_IN + (PANEL_IN + GAP_IN) * column for column in range(len(COLUMNS))]
        panels = [planes.add_panel(figure, left, top, PANEL_IN, height) for left in lefts]
        plane = planes.plane_grid(grid, view, centre)
        greys = [_grey(image, window, plane, view) for image, window in zip((fixed, moving, warped), windows)]
        labels = [None if label is None else planes.values_on(plane, label, view)[0]
                  for label in (fixed_label, moving_label, warped_label)]  # fmt: skip
        _draw_row(panels, view, grid.spacing_mm, greys, labels)
        _draw_grid(panels[4], np.squeeze(field.on(plane).vectors_mm.cpu().numpy(), 1 + view.normal), view, grid)
        planes.add_letters(panels[0], view)
        top += height + GAP_IN
    planes.save(figure, path)


def feature_figure(path: str | Path, images: Image | Sequence[Image], features: FeatureMap | Sequence[FeatureMap],
                   titles: Sequence[str] = (), title: str = "", labels: Sequence[Image] = ()) -> None:  # fmt: skip
    """Each image's three planes beside its features, whose first three principal components are red, green and blue.

    The components are those of all images' foreground cells together: the same colour means the same feature everywhere.
    labels: one of each image, on its grid; planes cut through their middle then, and contours are drawn.
    """
    labels = [label.canonical() for label in labels] or [None] * len([images] if isinstance(images, Image) else images)
    images = [image.canonical() for image in ([images] if isinstance(images, Image) else images)]
    features = [features] if isinstance(features, FeatureMap) else list(features)
    if len(images) != len(features):
        raise ValueError(f"Each image needs its features, got {len(images)} images and {len(features)} feature maps.")
    colours = component_colours(images, features)
    height = 1.9
    widths = [[height / max(planes.height_over_width(image.grid, view), 0.25) for view in VIEWS] for image in images]
    top = TITLE_IN * bool(title) + GAP_IN
    header = HEADER_IN * bool(titles)
    total = max(sum(2 * w + 2 * GAP_IN for w in row) for row in widths) + GAP_IN
    figure = planes.new_figure(total, top + len(images) * (height + header + GAP_IN))
    planes.add_text(figure, GAP_IN + 0.02, 0.05, title, fontsize=11, parse_math=False)
    for i, (image, colour) in enumerate(zip(images, colours)):
        if titles:
            planes.add_text(figure, GAP_IN + 0.02, top + 0.03, titles[i], fontsize=9, color="#444444", parse_math=False)
        _draw_features(figure, image, colour, top + header, height, widths[i], labels[i])
        top += header + height + GAP_IN
    planes.save(figure, path)


def progress_figure(path: str | Path, rows: Sequence[Mapping[str, float]], ln_k: float, title: str = "") -> None:
    """Eight panels over the training steps.

    rows: the log, oldest first; each names its "step" and numbers by name: those with "loss", "probe_", "learning_rate",
    "temperature", "momentum", "spread", "rank", "entropy", "gradient_norm" and "samples_per_second" in their name are drawn.
    ln_k: the loss of a student
    that knows nothing, the logarithm of the number of prototypes.
    """
    figure = planes.new_figure(17, 6.4)
    figure.set_layout_engine("constrained")
    if title:
        figure.suptitle(title, fontsize=11, parse_math=False)
    for axes, (name, parts) in zip(figure.subplots(2, 4).flat, PANELS):
        _draw_panel(axes, rows, parts)
        if name in LN_K:
            axes.axhline(ln_k, color="#888888", linestyle="--", linewidth=1, label=f"ln K = {ln_k:.2f}")
        handles, labels = axes.get_legend_handles_labels()
        if len(labels) > 1:
            axes.legend(handles, labels, fontsize=8, frameon=False)
        axes.set_title(name, fontsize=10)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[4:8]:
        axes.set_xlabel("step", fontsize=9)
    planes.save(figure, path)


def _grey(image: Image, window: tuple[float, float], plane: Grid, view: View) -> np.ndarray:
    """A plane of an image, 0 black to 1 white."""
    low, high = window
    return np.clip((planes.values_on(plane, image, view)[0] - low) / (high - low), 0, 1)


def _draw_row(panels, view: View, spacing_mm, greys: Sequence[np.ndarray], labels: Sequence[np.ndarray | None]) -> None:
    """One plane in all columns."""
    fixed, moving, warped = greys
    checkers = _checkerboard(fixed, warped, spacing_mm[view.across], spacing_mm[view.up])
    for axes, grey in zip(panels, (fixed, moving, warped, checkers, warped)):
        planes.show(axes, grey, view, spacing_mm, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    for axes, label in zip(panels, labels):
        if label is not None:
            _draw_contours(axes, label, COLOURS, "solid", 1.0)
    for axes in panels[1:3] if labels[0] is not None else []:
        _draw_contours(axes, labels[0], ("white",), "dotted", 0.8)


def _checkerboard(a: np.ndarray, b: np.ndarray, step_across: float, step_up: float) -> np.ndarray:
    """Squares of a and b in turn, CHECKERS of them along the longer side."""
    edge_mm = max(a.shape[0] * step_across, a.shape[1] * step_up) / CHECKERS
    across = (np.arange(a.shape[0]) * step_across // edge_mm).astype(int)
    up = (np.arange(a.shape[1]) * step_up // edge_mm).astype(int)
    return np.where((across[:, None] + up[None, :]) % 2 == 0, a, b)


def _draw_contours(axes, plane: np.ndarray, colours: Sequence[str], style: str, width: float) -> None:
    for label in np.unique(plane[plane != 0]):
        mask = np.pad(plane == label, 1)  # so that contours close at the border
        ticks = [np.arange(-1, n + 1) for n in plane.shape]
        colour = colours[(int(label) - 1) % len(colours)]
        axes.contour(*ticks, mask.T.astype(float), [0.5], colors=[colour], linewidths=width, linestyles=style)
    axes.set_xlim(plane.shape[0] - 0.5, -0.5)
    axes.set_ylim(-0.5, plane.shape[1] - 0.5)


def _draw_grid(axes, vectors_mm: np.ndarray, view: View, grid: Grid) -> None:
    """Straight lines of the moving image, as the field bends them: contours of where each fixed point comes from."""
    shift = np.einsum("ij,jab->iab", np.linalg.inv(grid.affine[:3, :3]), vectors_mm)
    spacing = [grid.spacing_mm[axis] for axis in (view.across, view.up)]
    step_mm = max(n * s for n, s in zip(vectors_mm.shape[1:], spacing)) / GRID_LINES
    for i, axis in enumerate((view.across, view.up)):
        own = np.arange(vectors_mm.shape[1 + i]).reshape((-1, 1) if i == 0 else (1, -1))
        origin = (own + shift[axis]).T
        step = max(step_mm / spacing[i], (origin.max() - origin.min()) / 200)  # a wild field has no more lines than that
        levels = np.arange(np.ceil(origin.min() / step), np.floor(origin.max() / step) + 1) * step
        levels = levels[(levels > origin.min()) & (levels < origin.max())]
        if len(levels):
            axes.contour(origin, levels, colors="#ffd23f", linewidths=0.7, linestyles="solid")


def component_colours(images: Sequence[Image], features: Sequence[FeatureMap]) -> list[Image]:
    """First three principal components of all maps together, scaled to 0..1 over the foreground: canonical (3, X', Y', Z')."""
    rows, masks = [], []
    for image, feature in zip(images, features):
        grey = sample_points(torch.from_numpy(np.ascontiguousarray(image.array)), image.grid, feature.grid.points_mm())
        rows.append(feature.values.float().cpu().numpy().reshape(feature.values.shape[0], -1).T)  # (N, F)
        masks.append(planes.foreground(grey[0].numpy()).ravel())
    inside = np.concatenate([_some(row[mask] if mask.any() else row) for row, mask in zip(rows, masks)]).astype(np.float64)
    mean = inside.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(inside - mean, rowvar=False).reshape(inside.shape[1], -1))
    basis = vectors[:, ::-1][:, :3]
    basis = basis * np.where(np.abs(basis).max(axis=0) == basis.max(axis=0), 1, -1)  # an eigenvector's sign is arbitrary
    low, high = np.percentile((inside - mean) @ basis, (2, 98), axis=0)
    out = []
    for row, feature in zip(rows, features):
        projected = row @ basis.astype(np.float32) - (mean @ basis).astype(np.float32)
        scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0, 1).astype(np.float32)
        scaled = np.pad(scaled, ((0, 0), (0, 3 - scaled.shape[1])))  # fewer than three channels leave colours out
        out.append(Image(scaled.T.reshape(3, *feature.grid.shape), feature.grid).canonical())
    return out


def _some(rows: np.ndarray) -> np.ndarray:
    """Evenly spread rows, enough for the components."""
    return rows[:: max(1, len(rows) // ENOUGH_CELLS)]


def _draw_features(figure, image: Image, colours: Image, top: float, height: float, widths: Sequence[float],
                   label: Image | None) -> None:  # fmt: skip
    """One row: each plane of the image, and beside it the colours of the cells that it cuts; contours of a label on both."""
    centre = np.rint(image.grid.world_to_index(planes.middle_mm(image if label is None else label))).astype(int)
    cell = np.rint(colours.grid.world_to_index(image.grid.index_to_world(centre)))
    cell = np.clip(cell, 0, np.array(colours.grid.shape) - 1)
    corners = [np.full(3, -0.5), np.array(colours.grid.shape) - 0.5]
    low, high = (image.grid.world_to_index(colours.grid.index_to_world(corner)) for corner in corners)
    left, (black, white) = GAP_IN, planes.window_of(image)
    for view, width in zip(VIEWS, widths):
        grey, colour = planes.cut(image, view, centre)[0], np.moveaxis(planes.cut(colours, view, cell), 0, -1)
        axes = planes.add_panel(figure, left, top, width, height)
        planes.show(axes, grey, view, image.grid.spacing_mm, cmap="gray", vmin=black, vmax=white)
        planes.add_letters(axes, view)
        organs = None if label is None else planes.cut(label, view, centre)[0]
        if organs is not None:
            _draw_contours(axes, organs, COLOURS, "solid", 1.0)
        axes = planes.add_panel(figure, left + width + GAP_IN / 2, top, width, height)
        extent = (low[view.across], high[view.across], low[view.up], high[view.up])
        planes.show(axes, colour, view, image.grid.spacing_mm, extent=extent, interpolation="nearest")
        if organs is not None:
            _draw_contours(axes, organs, ("white",), "solid", 0.8)
        axes.set_xlim(grey.shape[0] - 0.5, -0.5)
        axes.set_ylim(-0.5, grey.shape[1] - 0.5)
        left += 2 * width + 2 * GAP_IN


def _draw_panel(axes, rows: Sequence[Mapping[str, float]], parts: Sequence[str]) -> None:
    """All curves whose names contain one of `parts`; a value of a row may be missing."""
    names = dict.fromkeys(name for row in rows for name, value in row.items()
                          if value is not None and any(part in name for part in parts))  # fmt: skip
    rights = [name for name in names if any(part in name for part in RIGHT)]
    right = axes.twinx() if rights else None
    for i, name in enumerate(names):
        known = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        target = right if name in rights else axes
        label = name
        for part in LONG_NAMES:
            label = label.replace(part, "")
        marker = "o" if len(known) == 1 or name.startswith("probe_") else None
        target.plot(*zip(*known), color=f"C{i}", linewidth=1.3, marker=marker, markersize=4, label=label)
    if right is not None:
        right.tick_params(labelsize=8)
        axes.plot([], [], color=right.lines[0].get_color(), label=right.lines[0].get_label())  # for the one legend
