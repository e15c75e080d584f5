"""The card of a shared model: what it was trained on and how, what it is worth, where it ends; for programs and people."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from nnssl_reg.imageio.json_files import read_dataclass
from nnssl_reg.imageio.model_folder import CARD
from nnssl_reg.planning.plans import Configuration, PretrainingPlan

CARD_VERSION = 1
NOT_STATED = "not stated"
FEATURES = ("dino", "mind", "dino+mind", "auto")
MOST_PROBES = 200  # rows of the probe's curve that are kept, evenly spread


@dataclass(frozen=True)
class DataSource:
    """A data set that was trained on. cases: images of it, None if they could not be counted."""

    dataset: str
    licence: str
    description: str
    channels: tuple[str, ...]
    cases: int | None


@dataclass(frozen=True)
class ModelCard:
    """What is to be known of a shared model.

    default_features: what registration should use where nobody says, because it measured better; recipe: the pretraining
    section of the plans; steps: done; metrics: the log's last value of each name; probe: rows of the log with a probe's
    values, in order of their "step"; notes: known limits; source_commit: of the package that exported it, the commit of its
    checkout, or its version where it is installed.
    """

    name: str
    data: tuple[DataSource, ...]
    recipe: PretrainingPlan
    steps: int
    seed: int
    checkpoint: str
    parameters: int
    precision: str
    default_features: str
    metrics: dict[str, float]
    probe: tuple[dict[str, float], ...]
    notes: str
    versions: dict[str, str]
    written: str
    source_commit: str = "unknown"  # as in cards from before there was this field
    version: int = CARD_VERSION

    def __post_init__(self):
        if self.default_features not in FEATURES:
            raise ValueError(f"default_features is one of {', '.join(FEATURES)}, got {self.default_features!r}.")


def read_card(folder: str | Path) -> ModelCard:
    """The card of a shared model's folder."""
    return read_dataclass(ModelCard, Path(folder) / CARD, CARD_VERSION)


def logged_metrics(log: Path) -> tuple[dict[str, float], tuple[dict[str, float], ...]]:
    """The last finite value of each name in a training_log.jsonl, and its rows' probe values; both empty without a log."""
    metrics, curve = {}, []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # cut off by a kill
        values = {name: float(value) for name, value in row.items() if _is_number(value)}
        metrics |= values
        probed = {name: value for name, value in values.items() if "probe" in name}
        if probed and "step" in values:
            curve.append({"step": values["step"], **probed})
    every = max(1, math.ceil(len(curve) / MOST_PROBES))
    return metrics, tuple(curve[::-1][::every][::-1])


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def one_line(card: ModelCard) -> str:
    """The model in a line, for lists."""
    data = ", ".join(source.dataset for source in card.data)
    return f"{card.parameters / 1e6:.2g} million weights in {card.precision}, {card.steps} steps on {data}"


def licences(card: ModelCard) -> str:
    """Under what the data are that it was trained on, in a line."""
    return "; ".join(f"{source.dataset}: {source.licence}" for source in card.data)


def card_text(card: ModelCard, configuration: Configuration) -> str:
    """The card as Markdown, for people."""
    image, network = configuration.image, configuration.network
    channels = ", ".join(f"{c.name} ({c.normalization})" for c in image.channels.values())
    lines = [f"# {card.name}", "", f"An encoder for registration with nnssl_reg: {one_line(card)}.", "", "## Data", ""]
    for source in card.data:
        count = "number of images unknown" if source.cases is None else f"{source.cases} images"
        lines.append(f"- {source.dataset}: {source.description or 'no description'}. {count}, channels "
                     f"{', '.join(source.channels)}. Licence: {source.licence}.")  # fmt: skip
    lines += ["", "## Network and input", "",
              f"PRIMUS, width {network.embed_dim}, depth {network.depth}, {network.num_heads} heads, tokens of "
              f"{_times(network.patch_size)} voxels; trained at {_times(image.spacing_mm)} mm; channels {channels}.",
              "", "## Registration", "", f"Features where nobody says otherwise: {card.default_features}.",
              "", "## Known limits", "", card.notes or NOT_STATED.capitalize() + ".",
              "", "## Recipe", "", f"{card.steps} steps, seed {card.seed}, checkpoint {card.checkpoint}.", ""]  # fmt: skip
    lines += [f"- {name}: {value}" for name, value in asdict(card.recipe).items()]
    lines += ["", "## Log", ""] + ([f"- {name}: {value:.6g}" for name, value in card.metrics.items()] or ["None kept."])
    if card.probe:
        names = list(dict.fromkeys(name for row in card.probe for name in row))
        lines += ["", "## Probe", "", f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(f"{row[n]:.6g}" if n in row else "" for n in names) + " |" for row in card.probe]
    versions = ", ".join(f"{name} {value}" for name, value in card.versions.items())
    written = f"Written {card.written}, source {card.source_commit}."
    return "\n".join([*lines, "", f"Trained with {versions}. {written}", ""])


def _times(values) -> str:
    return " x ".join(f"{v:g}" for v in values)
