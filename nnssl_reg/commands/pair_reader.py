"""The images, labels and masks of pairs from their files, the next pair read while the last one is computed."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nnssl_reg.commands.image_kind import doubt_of
from nnssl_reg.commands.pair_features import FeatureStore
from nnssl_reg.commands.pair_types import ImagePair, Side
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import check_same_grid, count_volumes, read_labels
from nnssl_reg.imageio.pairs import Pair, read_pair_landmarks

log = logging.getLogger("nnssl_reg")


class PairReader:
    """Iterates over (pair, a Future of its ImagePair). One thread reads, at most one pair ahead. Use it in a with.

    check: called before a pair's files are read; what it raises is the pair's error.
    """

    def __init__(self, pairs: Sequence[Pair], store: FeatureStore, check: Callable[[Pair], None] = lambda pair: None):
        self._pairs, self._store, self._check = pairs, store, check
        self._last: dict[Path, Image] = {}
        self._checked: set[tuple[str, str]] = set()
        self._thread = ThreadPoolExecutor(1, "reader")

    def __enter__(self) -> "PairReader":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[Pair, Future]]:
        ahead = self._thread.submit(self._read, self._pairs[0]) if self._pairs else None
        for i, pair in enumerate(self._pairs):
            now = ahead
            now.exception()  # waits; the next is read only after this one, so that no more than one lies ready
            if i + 1 < len(self._pairs):
                ahead = self._thread.submit(self._read, self._pairs[i + 1])
            yield pair, now
            del now

    def _read(self, pair: Pair) -> ImagePair:
        """The pair's images; those of the pair before are at hand, perhaps not yet encoded."""
        before, self._last = self._last, {}
        self._check(pair)
        images = read_pair(pair, self._store, before, self._last)
        check_names(images, self._checked)
        return images


def read_pair(pair: Pair, store: FeatureStore, before: dict[Path, Image] | None = None,
              seen: dict[Path, Image] | None = None) -> ImagePair:  # fmt: skip
    """The images of a pair, with labels and masks on their grids. before: images at hand; seen: takes the images read.

    Raises ValueError or OSError for files that cannot be used.
    """
    started = time.perf_counter()
    sides, seen = [], {} if seen is None else seen
    for side in ("fixed", "moving"):
        path, channel, label, mask = (getattr(pair, f"{side}{what}") for what in ("", "_channel", "_label", "_mask"))
        at_hand = {**(before or {}), **seen}
        seen[path] = at_hand[path] if path in at_hand else store.read(path)
        of = path, seen[path], store.volume
        label = None if label is None else _on_grid(label, *of, "labels")
        mask = None if mask is None else checked_mask(_on_grid(mask, *of, "mask voxels"), str(mask))
        sides.append(Side(seen[path], str(path), channel, label, mask))
    landmarks = read_pair_landmarks(pair, *(side.image.grid for side in sides))
    of = pair.fixed, sides[0].image, store.volume
    rigid = None if pair.rigid_mask is None else _on_grid(pair.rigid_mask, *of, "voxels of rigid regions")
    rigid = None if rigid is None else checked_mask(rigid, str(pair.rigid_mask), "there is no region to keep rigid")
    return ImagePair(*sides, landmarks, time.perf_counter() - started, rigid)


def check_names(pair: ImagePair, checked: set[tuple[str, str]]) -> None:
    """Warn of images whose intensities speak against the channel they are named, which also decides how MIND sees them.

    checked: images and channels that were looked at before, to which these are added.
    """
    for side in (pair.fixed, pair.moving):
        if side.channel is None or (side.name, side.channel) in checked:
            continue
        checked.add((side.name, side.channel))
        doubt = doubt_of(side.image, side.channel)
        if doubt is not None:
            log.warning("%s is %s; the name decides how it is seen. If it is wrong, correct it: fixed_channel or "
                        "moving_channel of the pair, or channel_names in dataset.json.", side.name, doubt)  # fmt: skip


def checked_mask(mask: Image, name: str, so: str = "nothing could be registered") -> Image:
    """The mask, if it holds anything. so: what follows if not. Raises ValueError with its name."""
    if not np.any(mask.array > 0):
        raise ValueError(f"{name}: the mask is empty, so {so}; give another or none.")
    return mask


def _on_grid(path: Path, image_path: Path, image: Image, volume: int | None, kind: str) -> Image:
    """Labels on the voxels of their image. volume: the image's, which is also theirs if there are as many of them."""
    belongs = volume is not None and count_volumes(path) == count_volumes(image_path)
    label = read_labels(path, volume if belongs else None)
    check_same_grid(image, label, name=str(path), kind=kind)
    return label
