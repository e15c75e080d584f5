"""Features of the images of a run: each image once, the right normalisation, the right grids."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl_reg.commands import pair_features
from nnssl_reg.commands.image_kind import channel_key
from nnssl_reg.commands.pair_features import FeatureStore, Look, Model
from nnssl_reg.features.encode import encode
from nnssl_reg.geometry.image import Image
from nnssl_reg.imageio.images import read_image, write_image
from nnssl_reg.planning.plans import ChannelPlan
from nnssl_reg.pretraining.checkpoint import load_encoder
from nnssl_reg.registration.cells import feature_scale

CPU = torch.device("cpu")


@pytest.fixture
def store_of(model_folder, tmp_path):
    """store_of(kind, channels) -> a FeatureStore with a tiny model."""

    def make(kind: str, channels=("MR",)) -> FeatureStore:
        folder = model_folder(tmp_path / "results", channels=channels)
        configuration, encoder = load_encoder(folder, CPU)
        return FeatureStore(kind, configuration.features, Model(folder, configuration, encoder), CPU)

    return make


@pytest.fixture
def files(tmp_path, turned_grid, body_image) -> list[Path]:
    paths = [tmp_path / f"{i}.nii.gz" for i in range(4)]
    for i, path in enumerate(paths):
        write_image(path, body_image(turned_grid((26, 24, 22), (4.0, 4.2, 4.5), (0, 4, 30 * i)), shortest_mm=12 + i))
    return paths


def test_each_image_is_read_and_encoded_once_for_consecutive_pairs(store_of, files, monkeypatch):
    read = []
    monkeypatch.setattr(pair_features, "read_image", lambda path, **k: (read.append(path), read_image(path, **k))[1])
    store, look = store_of("dino"), Look("dino", 1.0)
    for fixed, moving in zip(files, files[1:]):
        store.pair(look, store.of(fixed, "MR", look), store.of(moving, "MR", look))
    assert read == files


def test_an_atlas_is_encoded_once_and_what_memory_does_not_hold_is_given_up(store_of, files, monkeypatch):
    read = []
    monkeypatch.setattr(pair_features, "read_image", lambda path, **k: (read.append(path.name[0]), read_image(path, **k))[1])
    store, look = store_of("mind"), Look("mind", 1.0)
    for bound, times in ((1e12, "0123"), (0, "0123123")):
        store.kept_bytes = bound
        read.clear()
        store._kept.clear()
        for moving in (1, 2, 3, 1, 2, 3):
            store.of(files[0], "MR", look), store.of(files[moving], "MR", look)
        assert "".join(read) == times and len(store._kept) == (4 if bound else 2)


def test_faint_texture_counts_where_both_images_are_ct_and_not_beside_mr(store_of, files):
    store = store_of("mind")
    image = read_image(files[0])
    hounsfield = Image(image.array - 1000, image.grid)
    plan = store.plan
    assert plan.mind_noise_ct < plan.mind_noise
    ct, mr = ("CT", image), (None, image)
    for images, expected in (((ct, (None, hounsfield)), plan.mind_noise_ct), ((ct, mr), plan.mind_noise),
                             ((mr, mr), plan.mind_noise)):  # fmt: skip
        assert store.look(*images) == store.look(*images[::-1]) == Look("mind", expected)
    faint, strict = (
        store.of(files[0], "CT", Look("mind", noise)).mind.values for noise in (plan.mind_noise_ct, plan.mind_noise)
    )
    assert float(faint.std()) > 1.1 * float(strict.std())  # flat places say less, and both are kept
    assert torch.equal(store.of(files[0], "CT", Look("mind", plan.mind_noise_ct)).mind.values, faint)


def test_both_images_are_smoothed_alike_where_one_is_noisy(store_of, files):
    store = store_of("mind")
    image, other = (read_image(path) for path in files[:2])
    deviation = 0.15 * np.ptp(np.percentile(image.array, (1, 99)))
    noise = np.random.default_rng(0).normal(0, deviation, image.array.shape)
    noisy = Image(np.abs(image.array + noise).astype(np.float32), image.grid)
    clean, look = store.look((None, image), (None, other)), store.look((None, noisy), (None, other))
    assert clean.smoothing_mm == 0 < look.smoothing_mm == store.look((None, other), (None, noisy)).smoothing_mm
    seen = {(name, at): store.of(name, None, at, given).mind.values
            for name, given in (("noisy", noisy), ("clean", image)) for at in (clean, look)}  # fmt: skip
    apart = [float((seen["noisy", at] - seen["clean", at]).square().mean()) for at in (clean, look)]
    assert apart[1] < 0.5 * apart[0]


def test_auto_looks_with_learned_features_across_modalities_only(store_of, files, monkeypatch):
    encoded = []
    monkeypatch.setattr(pair_features, "encode", lambda *a, **k: (encoded.append(1), encode(*a, **k))[1])
    store = store_of("auto", ("CT", "MR"))
    ct, mr = (("CT", read_image(files[0])), ("MR", read_image(files[1])))
    assert [store.look(*pair).kind for pair in ((ct, ct), (mr, mr), (ct, mr), (mr, ct))] == ["mind", "mind"] + ["dino+mind"] * 2
    within, across = store.look(mr, mr), store.look(ct, mr)
    seen = [store.of(path, "MR", within) for path in files[:2]]
    assert encoded == [] and store.pair(within, *seen)[0].values.shape[0] == 12
    seen = [store.of(path, "MR", across) for path in files[:2]]
    assert len(encoded) == 2 and store.pair(across, *seen)[0].values.shape[0] == 18


def test_the_refinement_at_voxels_sees_lungs(store_of, turned_grid, monkeypatch):
    lung = np.zeros((24, 20, 16), bool)
    lung[:12] = True
    values = np.where(lung, -800, 40) + 80 * np.random.default_rng(0).standard_normal(lung.shape)
    image, store, look = (
        Image(values[None].astype(np.float32), turned_grid(lung.shape, 2.0)),
        store_of("mind", ("CT",)),
        Look("mind", 1.0),
    )
    spread = []
    for _ in range(2):
        seen = store.at_voxels(store.of("chest", "CT", look, image), "CT", 8).values[0]
        spread.append(float(seen[:6].std() / seen[-6:].std()))
        monkeypatch.setattr(pair_features, "with_lungs", lambda values: (values, 1.0))
    assert spread[0] > 1.3 * spread[1]


def test_kinds_of_features_have_their_channels_and_grids(store_of, files):
    maps = {}
    for kind in ("mind", "dino", "dino+mind"):
        store = store_of(kind)
        look = Look(kind, 1.0)
        maps[kind] = store.pair(look, *(store.of(path, None, look) for path in files[:2]))
    assert [maps[kind][0].values.shape[0] for kind in maps] == [12, 6, 18]
    assert np.allclose(maps["dino"][0].grid.spacing_mm, 16) and np.allclose(maps["mind"][0].grid.spacing_mm, 8)
    assert maps["dino+mind"][1].grid == maps["mind"][1].grid
    shares = [
        feature_scale(maps["dino+mind"][0].values[s], maps["dino+mind"][1].values[s]) ** 2 for s in (slice(6), slice(6, 18))
    ]
    assert abs(shares[1] - 0.75) < 0.01 and abs(shares[0] - 0.25) < 0.13  # the learned ones are resampled, hence smoother


def test_features_of_an_oblique_image_lie_along_the_axes_of_the_world(store_of, files):
    straight, turned = (store_of("dino").of(path, None, Look("dino", 1.0)) for path in files[:2])
    for features in (turned.mind, turned.tokens):
        assert features.grid.obliqueness_degrees() < 1e-3
    assert np.isclose(straight.mind.grid.obliqueness_degrees(), 4, atol=1e-3)


CHANNELS = {"0": ChannelPlan("CT", "ct", -1000, 1000, None), "1": ChannelPlan("T1", "mr", None, None, None),
            "2": ChannelPlan("T2", "mr", None, None, None)}  # fmt: skip


@pytest.mark.parametrize(("name", "low", "key"), [
    ("CT", 0, "0"), ("t2", 0, "2"), ("T1", -1000, "1"), ("FLAIR", 0, "1"), (None, -1000, "0"), (None, 0, "1"),
])  # fmt: skip
def test_the_channel_is_chosen_by_name_then_by_intensities(turned_grid, name, low, key):
    image = Image(np.linspace(low, 500, 125, dtype=np.float32).reshape(1, 5, 5, 5), turned_grid((5, 5, 5), 1.0))
    assert channel_key(CHANNELS, name, image, Path("x.nii.gz")) == key
    assert channel_key({"0": CHANNELS["0"]}, name, image, Path("x.nii.gz")) == "0"


def test_a_modality_that_the_model_does_not_know_is_named(turned_grid):
    image = Image(np.linspace(-1000, 500, 125, dtype=np.float32).reshape(1, 5, 5, 5), turned_grid((5, 5, 5), 1.0))
    with pytest.raises(ValueError, match="x.nii.gz: the model knows T1, T2"):
        channel_key({k: CHANNELS[k] for k in "12"}, None, image, Path("x.nii.gz"))


def test_an_image_that_does_not_look_like_the_channel_the_model_knows_is_warned_about(store_of, files, caplog):
    image = read_image(files[0])
    write_image(files[0], Image(image.array - image.array.min(), image.grid))
    store_of("dino", ("CT",)).of(files[0], None, Look("dino", 1.0))
    assert "0.nii.gz goes to the model as CT, but its intensities run from" in caplog.text
