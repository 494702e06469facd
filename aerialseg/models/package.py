"""The model file: one .safetensors holding the weights and everything needed to predict; never a pickle.

Its one metadata key is the ModelCard as canonical JSON with a SHA-256 over card and tensors. Several keys would be
written in random order, one is not, so equal models are equal files. Reading a card imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aerialseg.counts import GSD_RANGE
from aerialseg.errors import ConfigError, Diverged, ModelError, NoInputError, one_line
from aerialseg.files import is_folder, is_regular, write_bytes
from aerialseg.models.presets import NVIDIA, SIZE_MULTIPLE, ModelSpec
from aerialseg.values import from_values, parse_json, to_values

if TYPE_CHECKING:
    from torch import Tensor

    from aerialseg.models.build import Segmenter

FORMAT = 1
KEY = "aerialseg"
CLASSES = ("background", "building")
FILE_NAME = "model.safetensors"
MAX_TILE_SIZE = 16_384
MAX_OVERLAP = 0.75
"""As for windows of predict: above, the work grows without end."""
LEAST, MOST = 1e-6, 1e6
"""How small and how large a standard deviation or a temperature is in any use; the network counts in float32."""
MOST_SCALE = 1e30
"""Beyond any value of a pixel, and well within float32."""
MAX_HEADER_BYTES = 100_000_000  # the safetensors specification's own limit
AGAIN = "copy it again, or train the model again"
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"(dp", b"}q", b"cos\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model was trained as, and all that prediction needs beside the weights.

    `preset`, `architecture` and `encoder` name the network; for a module of your own, see `Model`, they are what you
    call it. Raises ValueError for values that do not fit each other.

    Example:
        >>> card = aerialseg.load_model("runs/town").card
        >>> card.architecture, card.bands, card.gsd_m
        ('linknet', 3, 0.3)
    """

    format: int = FORMAT
    preset: str
    architecture: str
    encoder: str
    encoder_arguments: dict[str, str | int | float | bool] = field(default_factory=dict)
    bands: int
    band_indexes: tuple[int, ...] | None = None
    """The scene's bands, counted from 1, in the order the network takes them; None: all but alpha."""
    scale: tuple[float, float] | None = None
    """Values of the scene that became 0 and 255; None: the scenes were uint8."""
    mean: tuple[float, ...]
    """Per band, in units of 0..255; `std` likewise."""
    std: tuple[float, ...]
    gsd_m: float | None = None
    tile_size: int
    overlap: float = 0.25
    classes: tuple[str, ...] = CLASSES
    threshold: float = 0.5
    temperature: float = 1.0
    training: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    licence: str = ""

    def __post_init__(self) -> None:
        checks = (
            (self.bands >= 1, f"bands is {self.bands}, expected 1 or more"),
            (1 <= self.tile_size <= MAX_TILE_SIZE, f"tile_size is {self.tile_size}, expected 1 to {MAX_TILE_SIZE}"),
            (
                all(isinstance(value, str | int | float | bool) for value in self.encoder_arguments.values()),
                f"encoder_arguments are {self.encoder_arguments}, expected text, numbers and truth values",
            ),
            (len(self.mean) == self.bands, f"mean has {len(self.mean)} values for {self.bands} bands"),
            (len(self.std) == self.bands, f"std has {len(self.std)} values for {self.bands} bands"),
            (all(abs(value) <= MOST for value in self.mean), f"mean is {list(self.mean)}, expected values of pixels"),
            (
                all(LEAST <= value <= MOST for value in self.std),
                f"std is {list(self.std)}, expected values above 0: {LEAST:g} to {MOST:g}",
            ),
            (
                self.band_indexes is None or (len(self.band_indexes) == self.bands and min(self.band_indexes) >= 1),
                f"band_indexes are {self.band_indexes}, expected {self.bands} from 1 on",
            ),
            (
                self.scale is None or -MOST_SCALE <= self.scale[0] < self.scale[1] <= MOST_SCALE,
                f"scale is {self.scale}, expected two numbers of pixels of which the first is lower",
            ),
            (
                self.gsd_m is None or GSD_RANGE[0] <= self.gsd_m <= GSD_RANGE[1],
                f"gsd_m is {self.gsd_m}, expected {GSD_RANGE[0]:g} to {GSD_RANGE[1]:g} metres per pixel",
            ),
            (self.classes == CLASSES, f"classes are {list(self.classes)}, expected {list(CLASSES)}"),
            (0 <= self.overlap <= MAX_OVERLAP, f"overlap is {self.overlap}, expected 0 to {MAX_OVERLAP}"),
            (0 < self.threshold < 1, f"threshold is {self.threshold}, expected between 0 and 1"),
            (
                LEAST <= self.temperature <= MOST,
                f"temperature is {self.temperature}, expected above 0: {LEAST:g} to {MOST:g}",
            ),
        )
        for holds, complaint in checks:
            if not holds:
                raise ValueError(complaint)


def save_model(path: Path, segmenter: Segmenter, card: ModelCard) -> None:
    """Write the model file as a whole or not at all; equal weights and cards give equal bytes.

    Raises Diverged when a weight is not finite, OutputError or StorageError when the file cannot be written.
    """
    write_bytes(path, model_bytes(path, segmenter, card), apart=True)


def model_bytes(path: Path, segmenter: Segmenter, card: ModelCard) -> bytes:
    """Return what `save_model` writes; `path` is named when a weight is not finite, which raises Diverged."""
    import torch
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in segmenter.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise Diverged(f"{one_line(path)}: not saved: weights {name} are not finite; train with a lower rate")
    if (tensors["mean"].tolist(), tensors["std"].tolist()) != _float32(card.mean, card.std):
        raise ValueError("the card's mean and std differ from the segmenter's")
    plain = save(tensors)
    entries, data = _split(path, plain)
    values = to_values(card)
    described = {**values, "digest": _digest(values, entries, data)}
    header = json.dumps({"__metadata__": {KEY: _canonical(described)}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((len(header).to_bytes(8, "little"), header, data))


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file as it was read, once: what its digest and its card tell of is what is run, whatever comes after."""

    path: Path
    card: ModelCard
    content: bytes = field(repr=False)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file."""
        return hashlib.sha256(self.content).hexdigest()

    def segmenter(self) -> Segmenter:
        """Return the network with its weights, on the CPU and in eval mode; raises as `load_model` does."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        from aerialseg.models.build import Segmenter, build_network, check_network, no_larger_than, outline

        name, card, spec = one_line(self.path), self.card, spec_of(self.card)
        try:
            tensors = load(self.content)
            with no_larger_than(tensors.values()):  # shapes only: what is larger than its tensors is never built
                outlined = outline(spec)
            _check_tensors(self.path, Segmenter(outlined, card.mean, card.std).state_dict(), tensors, card)
            if card.tile_size % SIZE_MULTIPLE:
                check_network(spec, card.tile_size)
            segmenter = Segmenter(build_network(spec), card.mean, card.std)
        except SafetensorError as error:
            raise ModelError(f"{name}: its tensors are damaged: {one_line(str(error))}; {AGAIN}") from error
        except ConfigError as error:
            raise ModelError(f"{name}: {error}") from error
        segmenter.load_state_dict(tensors)
        return segmenter.eval()


def load_model(path: Path) -> tuple[Segmenter, ModelCard]:
    """Read a model file, or a run folder's model; the Segmenter is on the CPU and in eval mode.

    The network is built once its outline, which has shapes only, fits the tensors. Raises NoInputError when there is
    none and ModelError when it is damaged, foreign or of another make.
    """
    read = read_model(path)
    return read.segmenter(), read.card


def read_model(path: Path) -> ModelFile:
    """Read and verify a model file, or a run folder's model, without torch; raises as `load_model` does."""
    file = find_model(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{one_line(file)}: cannot be read: {error.strerror}") from error
    return ModelFile(file, _verified_card(file, content), content)


def read_card(path: Path) -> ModelCard:
    """Read and verify a model file's card without torch; raises as `load_model` does."""
    return read_model(path).card


def spec_of(card: ModelCard) -> ModelSpec:
    """Return the card's network without pretrained weights; a licence that the card names was accepted."""
    named = (card.preset, card.architecture, card.encoder, card.encoder_arguments, card.bands)
    return ModelSpec(*named, accept_licence=card.licence == NVIDIA)


def find_model(path: Path) -> Path:
    """Return the model file at `path`, or in the run folder `path`; raises NoInputError when there is none."""
    path = Path(path)
    file = path / FILE_NAME if is_folder(path) else path
    if not is_regular(file):
        raise NoInputError(
            f"{one_line(file)}: no such model; give a .safetensors file or a run folder of aerialseg train"
        )
    return file


def _split(file: Path, content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Part a safetensors file into its header (parsed) and its data; every byte of the data must be accounted for.

    https://huggingface.co/docs/safetensors: 8 bytes of little-endian length, JSON, then the tensors without gaps.
    """
    name = one_line(file)
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES or content[8:9] != b"{":
        if content.startswith(PICKLES):
            raise ModelError(
                f"{name}: is a pickle, expected a .safetensors model of aerialseg; pickles can run code and are never"
                " opened as models: give the .safetensors file of the run"
            )
        raise ModelError(f"{name}: is not a .safetensors model of aerialseg; give the file that aerialseg train wrote")
    if len(content) < 8 + length:
        raise ModelError(f"{name}: is truncated: {len(content)} bytes, its header alone needs {8 + length}; {AGAIN}")
    try:
        header = parse_json(content[8 : 8 + length])
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ModelError(f"{name}: its header is damaged; {AGAIN}") from error
    if len(content) != expected:
        raise ModelError(f"{name}: is damaged: {len(content)} bytes, its header says {expected}; {AGAIN}")
    return header, memoryview(content)[8 + length :]


def _verified_card(file: Path, content: bytes) -> ModelCard:
    header, data = _split(file, content)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise ModelError(
            f"{one_line(file)}: has no aerialseg model card, so it is weights of another program; give the file that"
            " aerialseg train wrote (encoder weights go into the training configuration: model.weights)"
        )
    try:
        described = parse_json(metadata[KEY])
        version = described["format"]
        if version != FORMAT:
            raise ModelError(
                f"{one_line(file)}: is of format {str(version)[:20]}, this aerialseg reads format {FORMAT};"
                " update aerialseg"
            )
        digest = described.pop("digest")
        found = _digest(described, header, data)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"{one_line(file)}: its model card is damaged; {AGAIN}") from error
    if digest != found:
        raise ModelError(f"{one_line(file)}: is damaged: SHA-256 is {found[:16]}, expected {str(digest)[:16]}; {AGAIN}")
    try:
        if unknown := sorted(described.keys() - {field.name for field in dataclasses.fields(ModelCard)}):
            raise ValueError(f"its card has unknown fields {unknown}")
        card = from_values(ModelCard, described)
        for name, said in (("mean", card.mean), ("std", card.std)):
            if name in header and _float32(said)[0] != (held := _numbers(header[name], data)):
                raise ValueError(f"its card says {name} {list(said)}, its tensor {held}")
    except ValueError as error:
        raise ModelError(f"{one_line(file)}: this model cannot be used: {one_line(str(error))}") from error
    return card


def _digest(described: dict[str, Any], entries: dict[str, Any], data: memoryview) -> str:
    """Hash the card, then each tensor's name, type, shape and bytes in the order of names."""
    running = hashlib.sha256(_canonical(described).encode())
    for name in sorted(entries):
        entry = entries[name]
        begin, end = entry["data_offsets"]
        running.update(_canonical([name, entry["dtype"], entry["shape"]]).encode())
        running.update(data[begin:end])
    return running.hexdigest()


def _numbers(entry: dict[str, Any], data: memoryview) -> list[float]:
    """Return the values of a tensor of 32-bit floats; raises ValueError for one of another type."""
    import numpy as np

    begin, end = entry["data_offsets"]
    if entry["dtype"] != "F32":
        raise ValueError(f"its mean or std is {one_line(str(entry['dtype']))}, expected F32")
    values: list[float] = np.frombuffer(data[begin:end], "<f4").tolist()
    return values


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _check_tensors(file: Path, wanted: dict[str, Tensor], given: dict[str, Tensor], card: ModelCard) -> None:
    """Raise ModelError naming the first tensor that is missing, left over, or of another shape."""
    made = f"expected the tensors of {card.architecture} with {card.encoder} for {card.bands} bands"
    for name in sorted(wanted.keys() - given.keys()):
        raise ModelError(f"{one_line(file)}: tensor {name} is missing, {made}; {AGAIN}")
    for name in sorted(given.keys() - wanted.keys()):
        raise ModelError(f"{one_line(file)}: tensor {one_line(name)} is not of this network, {made}")
    for name in sorted(wanted):
        if given[name].shape != wanted[name].shape:
            found, shape = tuple(given[name].shape), tuple(wanted[name].shape)
            raise ModelError(f"{one_line(file)}: tensor {name} is {found}, expected {shape}: {made}")


def _float32(*rows: tuple[float, ...]) -> tuple[list[float], ...]:
    import numpy as np

    return tuple([float(np.float32(value)) for value in row] for row in rows)
