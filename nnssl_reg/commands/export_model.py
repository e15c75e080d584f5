"""nnssl_export_model: a trained model as a zip or folder to share: the teacher's encoder, plans, card, checksums."""

import logging
import subprocess
import tempfile
from argparse import Namespace
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import torch

from nnssl_reg.commands.model_choice import model_folder
from nnssl_reg.imageio.images import FILE_ENDINGS
from nnssl_reg.imageio.json_files import read_json
from nnssl_reg.imageio.model_folder import FILES, WEIGHTS, is_shared_model, sha256, whole_folder
from nnssl_reg.imageio.model_zip import write_model_zip
from nnssl_reg.imageio.raw_dataset import channel_names_of, dataset_json, find_dataset
from nnssl_reg.paths import raw_folder
from nnssl_reg.planning.plans import Configuration, Plans
from nnssl_reg.pretraining.checkpoint import (
    CheckpointInfo,
    checkpoint_path,
    load_encoder,
    newest_checkpoint,
    read_info,
    versions,
)
from nnssl_reg.pretraining.model_card import NOT_STATED, DataSource, ModelCard, licences, logged_metrics, one_line
from nnssl_reg.pretraining.shared_model import load_shared_model, write_shared_model

log = logging.getLogger("nnssl_reg")
MB = 1e6


def run(args: Namespace) -> int:
    """Write the zip or the folder of -o, and say what is in it."""
    source, out = model_folder(args), Path(args.o).expanduser()
    if is_shared_model(source):
        raise ValueError(f"{source} is an exported model already: share its files as they are, or import it elsewhere with "
                         "nnssl_import_model.")  # fmt: skip
    as_zip = out.suffix.lower() == ".zip" and not args.o.endswith("/")
    if as_zip and out.exists() and not args.overwrite:
        raise ValueError(f"{out} is there already; give --overwrite to replace it, or another -o.")
    path, info = _checkpoint(source, args.chk)
    configuration, encoder = load_encoder(source, "cpu", path.stem.removeprefix("checkpoint_"))
    plans_name = source.name.split("__")[1] if source.name.count("__") == 2 else "nnsslPlans"
    plans = Plans(info.dataset_name, plans_name, {info.configuration_name: configuration})
    card = _card(args, source, path, info, configuration, sum(p.numel() for p in encoder.parameters()))
    if as_zip:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), encoder, plans, info.configuration_name, card)
            write_model_zip(out, Path(folder))
            weights = (Path(folder) / WEIGHTS).stat().st_size
    else:
        with whole_folder(out, args.overwrite) as folder:
            _write(folder, encoder, plans, info.configuration_name, card)
        weights = (out / WEIGHTS).stat().st_size
    _say(out, card, weights, as_zip)
    return 0


def _checkpoint(source: Path, name: str | None) -> tuple[Path, CheckpointInfo]:
    """The checkpoint to export: of that name, else the one with most steps."""
    if name is not None:
        path = checkpoint_path(source, name)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; -chk takes final, best, latest or previous.")
        return path, read_info(path)
    found = newest_checkpoint(source) if source.is_dir() else None
    if found is None:
        raise FileNotFoundError(f"{source} holds no checkpoint; give the folder that nnssl_train_dino wrote.")
    return found


def _card(args: Namespace, source: Path, path: Path, info: CheckpointInfo, configuration: Configuration,
          parameters: int) -> ModelCard:  # fmt: skip
    metrics, probe = logged_metrics(source / "training_log.jsonl")
    channels = tuple(c.name for c in configuration.image.channels.values())
    return ModelCard(
        name=f"{info.dataset_name}__{source.name.partition('__')[2] or info.configuration_name}",
        data=_sources(args, info.dataset_name, channels),
        recipe=info.pretraining, steps=info.step, seed=info.seed, checkpoint=path.stem.removeprefix("checkpoint_"),
        parameters=parameters, precision="float16" if args.half else "float32", default_features=args.default_features,
        metrics=metrics, probe=probe, notes=args.notes or "", versions=info.versions,
        written=datetime.now(timezone.utc).isoformat(timespec="seconds"), source_commit=source_commit(),
    )  # fmt: skip


def source_commit(package: Path = Path(__file__).parents[1]) -> str:
    """The commit of the checkout that the package lies in, else the version that is installed."""
    with suppress(OSError):  # no git here
        asked = ["git", "-C", str(package), "rev-parse", "--show-prefix", "HEAD"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        if len(said) == 2 and said[0] == f"{package.name}/":  # not of a repository that holds an installed package deeper
            return said[1]
    return f"nnssl_reg {versions(('nnssl_reg',))['nnssl_reg']}"


def _sources(args: Namespace, dataset: str, channels: tuple[str, ...]) -> tuple[DataSource, ...]:
    """What the raw data sets say of themselves; --licence where they do not, or are not here."""
    sources = []
    for name in args.data or dataset.split("+"):  # Dataset001_Abdomen+002: trained on both
        told, images = {}, None
        try:
            folder = find_dataset(raw_folder(args.raw), name)
            name, images = folder.name, _images_in(folder / "imagesTr")
            told = read_json(dataset_json(folder))
        except (ValueError, OSError) as error:
            if args.data or args.raw:
                raise
            log.info("%s", error)
        told = told if isinstance(told, dict) else {}
        licence = args.licence or next((str(told[key]) for key in ("licence", "license") if told.get(key)), NOT_STATED)
        if licence == NOT_STATED:
            log.warning('The licence of %s is not known; give --licence TEXT, or write "licence" into its dataset.json and '
                        "set nnssl_raw.", name)  # fmt: skip
        own = tuple(channel_names_of(told).values()) or channels
        sources.append(DataSource(name, licence, str(told.get("description", "")), own, images))
    return tuple(sources)


def _images_in(folder: Path) -> int | None:
    return sum(path.name.endswith(FILE_ENDINGS) for path in folder.iterdir()) if folder.is_dir() else None


def _write(folder: Path, encoder: torch.nn.Module, plans: Plans, name: str, card: ModelCard) -> None:
    """Write the model, read it back as a receiver will, and compare."""
    write_shared_model(folder, encoder, plans, name, card)
    read = load_shared_model(folder, "cpu", "The disk does not keep what is written to it.")[1].state_dict()
    bound = 1e-3 if card.precision == "float16" else 0.0  # relative; a float16 has 11 digits of the mantissa, 2 ** -11
    for key, value in encoder.state_dict().items():
        if not torch.allclose(read[key].float(), value.float(), rtol=bound, atol=bound * 1e-4):
            raise ValueError(f"{folder / WEIGHTS}: {key} changes by more than {bound:g} of itself in {card.precision}; leave "
                             "out --half.")  # fmt: skip


def _say(out: Path, card: ModelCard, weights: int, as_zip: bool) -> None:
    size = f"{out.stat().st_size / MB:.1f} MB, SHA-256 {sha256(out)}" if as_zip else ", ".join(FILES)
    print(f"{card.name}: {one_line(card)}\nLicence of its data: {licences(card)}")
    print(f"weights {weights / MB:.1f} MB; wrote {out} ({size})")
    if not card.notes:
        print("The card names no known limits; --notes TEXT adds them.")
    using = f"nnssl_import_model {out}" if as_zip else f"nnssl_register -f FIXED -m MOVING --model {out}"
    print(f"To use it: {using}")
