"""What a training starts from: a fresh network, a model file (`--from`), or the run's own checkpoint.

Seeds are set here and nowhere else. What cannot work is said here, before the first step.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from aerialseg.config import TrainConfig
from aerialseg.config.sections import ModelSection
from aerialseg.errors import BadDataError, ConfigError, ModelError, one_line
from aerialseg.files import exists, sha256_of
from aerialseg.geo.geobox import gsd_differs
from aerialseg.models.build import Segmenter, build_network, check_batch_of_one, check_network, input_statistics
from aerialseg.models.package import ModelCard, find_model, load_model, spec_of
from aerialseg.models.presets import PRESETS, SIZE_MULTIPLE, ModelSpec, licence_of, resolve
from aerialseg.training.data import training_tiles, validation_side, validation_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aerialseg.geo.tiles.tileset import TileSet

LEAST_SPREAD = 1.0
"""A standard deviation below one grey level counts as one, so that a constant band is not blown up."""
PACKAGES = ("aerialseg", "segmentation-models-pytorch", "timm", "albumentations", "lightning", "numpy")
GIT_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Start:
    """A network to train, the tiles to train it on, and the card of the model that will come of it."""

    tiles: TileSet
    segmenter: Segmenter
    card: ModelCard
    """Without scores, and with the configured threshold."""
    config: TrainConfig
    """As given, but naming the network that is really trained."""
    teacher: Teacher | None = None


def start_fresh(tiles: TileSet, config: TrainConfig, *, use_unlabelled: bool = False) -> Start:
    """Build the configured network with random (seeded) or pretrained weights; `training_tiles` says `use_unlabelled`.

    Pretrained encoders get the normalisation they were trained with, all others that of the tiles. Raises ConfigError
    for a network that cannot be built or does not take the crop or whole tiles, BadDataError without a training tile;
    both before anything is downloaded; NoInputError when weights cannot be had.
    """
    torch.manual_seed(config.run.seed)
    section = config.model
    spec = resolve(
        section.preset,
        section.architecture,
        section.encoder,
        encoder_arguments=section.encoder_arguments,
        bands=len(tiles.mean),
        weights=section.weights,
        accept_licence=section.accept_licence,
    )
    _check_fit(spec, tiles, config, use_unlabelled)
    mean, std = input_statistics(spec) or (tiles.mean, tuple(max(value, LEAST_SPREAD) for value in tiles.std))
    licence = licence_of(spec)
    card = _describe(spec, tiles, config, mean=mean, std=std, licence=licence, training=_provenance(tiles, config))
    return Start(tiles, Segmenter(build_network(spec), mean, std), card, config)


def start_from_model(
    tiles: TileSet, config: TrainConfig, path: Path, say: Callable[[str], None], *, use_unlabelled: bool = False
) -> Start:
    """Continue from a model file or run folder, keeping its network and normalisation.

    Tells `say` where bands, value range, GSD or network differ. Raises ModelError when the number of bands does.
    """
    torch.manual_seed(config.run.seed)
    segmenter, old = load_model(path)
    name = one_line(path)
    if old.bands != len(tiles.mean):
        raise ModelError(
            f"{name}: the model takes {old.bands} bands, the tiles have {len(tiles.mean)}; cut tiles with --bands, or"
            " train without --from"
        )
    for difference in _differences(old, tiles, config):
        say(f"{name}: {difference}")
    named: dict[str, Any] = {"architecture": old.architecture, "encoder": old.encoder}
    if old.preset in PRESETS and PRESETS[old.preset].encoder == old.encoder:
        named = {"preset": old.preset}
    arguments, accepted = dict(old.encoder_arguments), config.model.accept_licence
    section = ModelSection(**named, encoder_arguments=arguments, weights="none", accept_licence=accepted)
    config = config.model_copy(update={"model": section})
    spec = spec_of(old)
    _check_fit(spec, tiles, config, use_unlabelled)
    training = {**_provenance(tiles, config), "started_from": sha256_of(find_model(path))}
    card = _describe(spec, tiles, config, mean=old.mean, std=old.std, licence=old.licence, training=training)
    return Start(tiles, segmenter, card, config)


def start_again(tiles: TileSet, checkpoint: Mapping[str, Any]) -> Start:
    """Build the network of a checkpoint, without its weights, which `load_state_dict` puts in."""
    card = ModelCard(**checkpoint["card"])
    segmenter = Segmenter(build_network(spec_of(card)), card.mean, card.std)
    return Start(tiles, segmenter, card, TrainConfig.model_validate(checkpoint["config"]))


def _check_fit(spec: ModelSpec, tiles: TileSet, config: TrainConfig, use_unlabelled: bool) -> None:
    """Raise ConfigError when the network does not take crops or validation tiles, BadDataError without tiles."""
    training_tiles(tiles, config.data, use_unlabelled=use_unlabelled)
    crop, multiple = config.data.crop, PRESETS[spec.preset].size_multiple if spec.preset in PRESETS else 1
    if crop % multiple:
        raise ConfigError(
            f"data.crop {crop}: {spec.preset} takes multiples of {multiple}, for example {crop // multiple * multiple}"
        )
    check_network(spec, crop)
    if config.data.batch == 1:
        check_batch_of_one(spec, crop)
    if validation_tiles(tiles, config.data):
        check_network(spec, validation_side(tiles, SIZE_MULTIPLE))


def _differences(old: ModelCard, tiles: TileSet, config: TrainConfig) -> list[str]:
    """Say what differs between the model, the tiles and the configuration; a user should know before fine-tuning."""
    lines = [
        f"was trained on {label} {before or 'all'}, the tiles hold {now or 'all'}"
        for label, before, now in (("bands", old.band_indexes, tiles.bands), ("value range", old.scale, tiles.scale))
        if before != now
    ]
    if gsd_differs(tiles.gsd_m, old.gsd_m):
        lines.append(f"was trained at {old.gsd_m:.3g} m per pixel, the tiles have {tiles.gsd_m:.3g} m")
    wanted = resolve(config.model.preset, config.model.architecture, config.model.encoder)
    if (wanted.architecture, wanted.encoder) != (old.architecture, old.encoder):
        lines.append(f"is {old.preset}, and that is trained, not the configuration's {wanted.preset}")
    return lines


def _provenance(tiles: TileSet, config: TrainConfig) -> dict[str, Any]:
    """Return what the card says of a model's making; no times and no places, so that equal runs give equal files."""
    return {
        "config": config.model_dump(),
        "tiles": {
            "digest": tiles.digest,
            "train": len(tiles.of_split("train")),
            "val": len(tiles.of_split("val")),
            "building_fraction": tiles.building_fraction,
        },
        "versions": versions(),
        "started_from": None,
        "teacher": None,
    }


def _describe(spec: ModelSpec, tiles: TileSet, config: TrainConfig, **fields: Any) -> ModelCard:
    """Return the card of a model to come; raises BadDataError for tiles that no model can be made of."""
    try:
        return ModelCard(
            preset=spec.preset,
            architecture=spec.architecture,
            encoder=spec.encoder,
            encoder_arguments=dict(spec.encoder_arguments),
            bands=spec.bands,
            band_indexes=tiles.bands,
            scale=tiles.scale,
            gsd_m=tiles.gsd_m,
            tile_size=config.data.crop,
            threshold=config.run.threshold,
            **fields,
        )
    except ValueError as error:
        raise BadDataError(f"{one_line(tiles.folder)}: no model can be made of these tiles: {error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """A model that is learned from."""

    segmenter: Segmenter
    temperature: float
    """Of its calibration: its logits are divided by it before they are probabilities."""

    def to(self, device: torch.device) -> Teacher:
        """Return the teacher on `device`."""
        return replace(self, segmenter=self.segmenter.to(device).to(memory_format=torch.channels_last))


def versions() -> dict[str, str]:
    """Return the versions of what weights depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "torch": str(torch.__version__), **found}


def git_revision(package: Path = Path(__file__).parent.parent) -> str | None:
    """Return the commit of the checkout that the program runs from, with "-dirty" when files differ from it.

    None when it is no checkout, and wherever git is missing or refuses.
    """
    root = package.parent
    if not exists(root / ".git"):  # else the user's own repository, around a virtual environment, would answer
        return None
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_WAIT_S, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def with_teacher(start: Start, path: Path | None, *, resumed: bool) -> Start:
    """Return the start with its teacher, whose SHA-256 the card of the model to come names; as it is without one.

    Raises ConfigError and ModelError when a resumed run had another teacher, or none, and what `load_teacher` raises.
    """
    known, digest = start.card.training.get("teacher"), None if path is None else sha256_of(find_model(path))
    if resumed and known != digest:
        if path is None:
            raise ConfigError("this run learns from a teacher: go on with the same --teacher MODEL")
        found = "begun without a teacher" if known is None else f"begun with another teacher (SHA-256 {known[:12]})"
        raise ModelError(f"{one_line(path)}: the run was {found}; go on with that, or start anew with --overwrite")
    if path is None:
        return start
    card = replace(start.card, training={**start.card.training, "teacher": digest})
    return replace(start, card=card, teacher=load_teacher(path, start.tiles, start.config))


def load_teacher(path: Path, tiles: TileSet, config: TrainConfig) -> Teacher:
    """Read the teacher, on the CPU, and check that it knows tiles like these.

    Raises ModelError when it takes other bands or another value range, or is damaged, BadDataError when the tiles'
    pixels are of another size on the ground, ConfigError when it does not take the crops.
    """
    segmenter, card = load_model(path)
    name = one_line(find_model(path))
    for label, taken, held in (
        ("bands", _bands_of(card.band_indexes, card.bands), _bands_of(tiles.bands, len(tiles.mean))),
        ("value range", card.scale, tiles.scale),
    ):
        if taken != held:
            raise ModelError(
                f"{name}: the teacher takes {label} {taken}, the tiles hold {held}; cut tiles like its own"
            )
    if gsd_differs(tiles.gsd_m, card.gsd_m):
        raise BadDataError(
            f"{one_line(tiles.folder)}: its pixels are {tiles.gsd_m:.3g} m, the teacher {name} was trained at"
            f" {card.gsd_m:.3g} m; cut tiles with --gsd {card.gsd_m:.3g}"
        )
    try:
        check_network(spec_of(card), config.data.crop)
    except ConfigError as error:
        raise ConfigError(f"{name}: data.crop {config.data.crop}: {error}") from error
    return Teacher(segmenter.requires_grad_(False).eval(), card.temperature)


def _bands_of(indexes: tuple[int, ...] | None, count: int) -> tuple[int, ...]:
    return indexes or tuple(range(1, count + 1))
