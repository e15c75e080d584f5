"""The atlas of the phantoms: tissues, and which one is where in an abdomen of simple shapes."""

from dataclasses import dataclass

import numpy as np

BODY_MM = (165.0, 112.0)  # half axes to the right and anterior
LOOPS = 16


@dataclass(frozen=True)
class Tissue:
    """hu: without contrast agent; contrast: HU it adds at most; mr: relative brightness, fat-suppressed T1; texture: 0..1."""

    name: str
    hu: float
    contrast: float
    mr: float
    texture: float


TISSUES = (
    Tissue("air", -1000, 0, 0.0, 0.0),
    Tissue("fat", -105, 0, 0.22, 0.3),
    Tissue("muscle", 50, 10, 0.40, 0.4),
    Tissue("lung", -840, 10, 0.05, 0.6),
    Tissue("cortical bone", 650, 0, 0.06, 0.3),
    Tissue("spongy bone", 220, 0, 0.35, 1.0),
    Tissue("disc", 85, 0, 0.30, 0.2),
    Tissue("fluid", 12, 0, 0.12, 0.1),
    Tissue("gas", -950, 0, 0.02, 0.0),
    Tissue("liver", 58, 55, 0.62, 0.5),
    Tissue("liver vessel", 45, 130, 0.90, 0.1),
    Tissue("spleen", 48, 80, 0.50, 0.5),
    Tissue("renal cortex", 35, 165, 0.85, 0.3),
    Tissue("renal medulla", 32, 95, 0.65, 0.3),
    Tissue("stomach wall", 45, 40, 0.50, 0.2),
    Tissue("food", 25, 0, 0.20, 1.0),
    Tissue("aorta", 42, 170, 0.85, 0.1),
    Tissue("vena cava", 42, 100, 0.75, 0.1),
    Tissue("pancreas", 38, 65, 0.70, 0.7),
    Tissue("bowel wall", 42, 45, 0.50, 0.2),
)
_INDEX = {tissue.name: i for i, tissue in enumerate(TISSUES)}

LABELS = {"liver": 1, "spleen": 2, "kidney_right": 3, "kidney_left": 4, "aorta": 5, "stomach": 6, "vertebrae": 7}

_ORGANS = {  # centre, half axes, mm
    "liver": ((78, 2, 52), (70, 72, 58)),
    "left lobe": ((12, 38, 66), (62, 38, 34)),
    "spleen": ((-104, -34, 58), (27, 37, 46)),
    "kidney_right": ((64, -50, -8), (27, 25, 50)),
    "kidney_left": ((-66, -50, 4), (27, 25, 52)),
    "stomach": ((-58, 32, 52), (42, 36, 44)),
}
_LIVER_VESSELS = [((40, 8, 40), end, 5.0) for end in ((125, 20, 60), (110, -40, 75), (70, 50, 80), (95, -10, 15), (15, 50, 72))]


def _landmarks() -> np.ndarray:
    """Organ centres and points on their axes, and the course of aorta and spine, (N, 3) atlas mm."""
    steps = np.concatenate([np.zeros((1, 3)), 0.85 * np.eye(3), -0.85 * np.eye(3)])
    organs = [np.array(centre) + steps * np.array(half) for centre, half in _ORGANS.values()]
    course = [[(-12, -38, z), (0, -66, z)] for z in range(-90, 111, 40)]
    return np.concatenate([*organs, *np.array(course, dtype=np.float64)])


LANDMARKS_MM = _landmarks()


@dataclass(frozen=True, eq=False)
class Loops:
    """Bowel loops, which lie differently in every patient: centres_mm, half_axes_mm (LOOPS, 3), holds_gas (LOOPS,)."""

    centres_mm: np.ndarray
    half_axes_mm: np.ndarray
    holds_gas: np.ndarray


def draw_loops(rng: np.random.Generator) -> Loops:
    """Random bowel loops in the lower half of the cavity."""
    low, high = (-95, -15, -150), (95, 62, -25)
    return Loops(rng.uniform(low, high, (LOOPS, 3)), rng.uniform(14, 32, (LOOPS, 3)), rng.uniform(size=LOOPS) < 0.4)


def paint(points_mm: np.ndarray, loops: Loops) -> tuple[np.ndarray, np.ndarray]:
    """Tissue index and label of atlas points (3, X, Y, Z): two (X, Y, Z) uint8 arrays. Later organs cover earlier ones."""
    canvas = _Canvas(points_mm)
    _paint_wall(canvas)
    _paint_loops(canvas, loops)
    _paint_upper_organs(canvas)
    _paint_kidneys(canvas)
    _paint_spine_and_vessels(canvas)
    return canvas.tissue, canvas.labels


class _Canvas:
    """What is painted so far, and the shapes to paint with. All lengths in mm of the atlas."""

    def __init__(self, points_mm: np.ndarray):
        self.x, self.y, self.z = points_mm
        self.tissue = np.zeros(self.x.shape, dtype=np.uint8)
        self.labels = np.zeros(self.x.shape, dtype=np.uint8)
        self.body = np.hypot(self.x / BODY_MM[0], self.y / BODY_MM[1])  # 1 on the skin

    def fill(self, where: np.ndarray, tissue: str, label: int = 0) -> None:
        self.tissue[where] = _INDEX[tissue]
        self.labels[where] = label

    def ellipsoid(self, centre, half_axes, scale: float = 1.0) -> np.ndarray:
        """Which points lie in the ellipsoid of `scale` times its half axes."""
        parts = [((p - c) / h) ** 2 for p, c, h in zip((self.x, self.y, self.z), centre, half_axes)]
        return parts[0] + parts[1] + parts[2] < scale**2

    def column(self, centre, radii) -> np.ndarray:
        """Which points lie in an elliptic column along z."""
        return ((self.x - centre[0]) / radii[0]) ** 2 + ((self.y - centre[1]) / radii[1]) ** 2 < 1

    def rod(self, start, end, radius: float) -> np.ndarray:
        """Which points lie within `radius` of a straight line from start to end."""
        start, along = np.array(start, np.float32), np.subtract(end, start).astype(np.float32)
        offsets = [p - s for p, s in zip((self.x, self.y, self.z), start)]
        share = np.clip(sum(o * a for o, a in zip(offsets, along)) / float(along @ along), 0, 1)
        return sum((o - share * a) ** 2 for o, a in zip(offsets, along)) < radius**2


def _paint_wall(canvas: _Canvas) -> None:
    """Skin fat, muscle, cavity, ribs, pelvis, lungs and the muscles beside the spine."""
    canvas.fill(canvas.body < 1, "fat")
    canvas.fill(canvas.body < 0.88, "muscle")
    canvas.fill(canvas.body < 0.76, "fat")
    slant = (canvas.z + 0.45 * np.abs(canvas.y - 20)) % 30 < 12
    cage = (canvas.body > 0.78) & (canvas.body < 0.86) & (canvas.z > -30 + 0.5 * canvas.y)
    canvas.fill(cage & slant & (canvas.y > -90), "cortical bone")
    for side in (-1, 1):
        canvas.fill(canvas.column((side * 40, -66), (22, 24)), "muscle")
        wing = ((side * 98, -30, -160), (48, 62, 70))
        canvas.fill(canvas.ellipsoid(*wing) & ~canvas.ellipsoid(*wing, scale=0.82) & (side * canvas.x > 60), "spongy bone")
        canvas.fill(canvas.ellipsoid((side * 78, -8, 150), (56, 62, 74)) & (canvas.body < 0.76), "lung")


def _paint_loops(canvas: _Canvas, loops: Loops) -> None:
    inside = canvas.body < 0.74
    for centre, half, gas in zip(loops.centres_mm, loops.half_axes_mm, loops.holds_gas):
        canvas.fill(canvas.ellipsoid(centre, half) & inside, "bowel wall")
        canvas.fill(canvas.ellipsoid(centre, half, 0.75) & inside, "food")
        canvas.fill(
            canvas.ellipsoid(centre, half, 0.75) & inside & (canvas.y > centre[1] + 0.2 * half[1]), "gas" if gas else "fluid"
        )


def _paint_upper_organs(canvas: _Canvas) -> None:
    """Pancreas, stomach, spleen, liver with its vessels, gallbladder."""
    inside = canvas.body < 0.76
    canvas.fill(canvas.rod((38, 12, 8), (-62, -8, 36), 12), "pancreas")
    stomach = _ORGANS["stomach"]
    canvas.fill(canvas.ellipsoid(*stomach) & inside, "stomach wall", LABELS["stomach"])
    lumen = canvas.ellipsoid(*stomach, scale=0.82) & inside
    canvas.fill(lumen, "food", LABELS["stomach"])
    canvas.fill(lumen & (canvas.y > 48), "gas", LABELS["stomach"])
    canvas.fill(canvas.ellipsoid(*_ORGANS["spleen"]) & inside, "spleen", LABELS["spleen"])
    liver = (canvas.ellipsoid(*_ORGANS["liver"]) | canvas.ellipsoid(*_ORGANS["left lobe"])) & inside
    canvas.fill(liver, "liver", LABELS["liver"])
    for start, end, radius in _LIVER_VESSELS:
        canvas.fill(liver & canvas.rod(start, end, radius), "liver vessel", LABELS["liver"])
    canvas.fill(canvas.ellipsoid((52, 42, 8), (15, 18, 26)) & inside, "fluid")


def _paint_kidneys(canvas: _Canvas) -> None:
    for name, side in (("kidney_right", 1), ("kidney_left", -1)):
        centre, half = _ORGANS[name]
        hilum = canvas.ellipsoid((centre[0] - side * 22, centre[1] + 4, centre[2]), (16, 14, 17))
        canvas.fill(canvas.ellipsoid(centre, half, 1.25) & (canvas.labels == 0), "fat")
        canvas.fill(canvas.ellipsoid(centre, half), "renal cortex", LABELS[name])
        canvas.fill(canvas.ellipsoid(centre, half, 0.68), "renal medulla", LABELS[name])
        canvas.fill(hilum & canvas.ellipsoid(centre, half), "fluid")


def _paint_spine_and_vessels(canvas: _Canvas) -> None:
    """Vertebrae with discs, canal and processes; aorta and vena cava in front of them."""
    body = canvas.column((0, -66), (24, 19))
    canvas.fill(body, "cortical bone", LABELS["vertebrae"])
    canvas.fill(canvas.column((0, -66), (19, 14)), "spongy bone", LABELS["vertebrae"])
    disc = (canvas.z % 34) < 9
    canvas.fill(body & disc, "disc")
    behind = (np.abs(canvas.x) < 5) & (canvas.y < -84) & (canvas.y > -106) | (np.abs(canvas.y + 84) < 6) & (
        np.abs(canvas.x) < 34
    )
    canvas.fill(behind & ~disc, "cortical bone", LABELS["vertebrae"])
    canvas.fill(canvas.column((0, -89), (9, 8)), "fluid")
    canvas.fill(canvas.column((20, -36), (12, 10)), "vena cava")
    canvas.fill(canvas.column((-12, -38), (12, 11)), "aorta", LABELS["aorta"])
