"""Batches of windows through the network on one device: uint8 pixels in, float32 probabilities of building out.

Out of memory halves the number of windows that run together, down to one, and stays halved for the run. Test-time
augmentation looks at each window mirrored and turned, and averages. Where windows lie in a scene is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from aerialseg.errors import ModelError, ResourceError
from aerialseg.models.build import Segmenter
from aerialseg.models.device import autocast, compile_error, is_out_of_memory, pick_precision, translated
from aerialseg.prediction.lattice import Lattice
from aerialseg.prediction.reading import WindowBatch
from aerialseg.progress import Silent

if TYPE_CHECKING:
    from torch import Tensor

    from aerialseg.geo.windows import Blend
    from aerialseg.models.package import ModelCard
    from aerialseg.prediction.options import PredictOptions, Symmetry
    from aerialseg.progress import Progress


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How scenes are cut, run and blended; decided once for a run."""

    size: int
    overlap: float
    batch: int
    device: torch.device
    precision: str = "fp32"
    temperature: float = 1.0
    """What logits are divided by: above one, less sure of itself."""
    blend: Blend = "hann"
    tta: Symmetry = "none"
    """Which mirrored and turned copies of a window are run too; their probabilities are averaged."""
    planes: int = 1
    """How many planes strips have: 1 for the probability, 2 also say how far the windows over a pixel disagree."""
    compile: bool = False
    """Whether torch.compile translates the network first."""


class BatchChanged(Exception):
    """Memory ran out, and fewer windows run together from now on: their last digits may differ from those before."""


class Forward:
    """A segmenter on its device; `together` and the buffers outlive a scene."""

    def __init__(self, segmenter: Segmenter, settings: EngineSettings, progress: Progress = Silent()) -> None:
        self.segmenter = segmenter.to(settings.device).to(memory_format=torch.channels_last).eval()
        self.settings = settings
        self.together = settings.batch
        """How many windows run together: `settings.batch` until memory runs out."""
        self.steady = False
        """Whether a batch that did not fit raises BatchChanged, to be asked for again in smaller ones."""
        self._views = views_of(settings.tta)
        self._progress = progress
        self._probabilities = torch.empty(0)
        self._copying = _stream_of(settings.device) if settings.device.type == "cuda" else None
        self._running: list[torch.cuda.Event] = []
        if settings.compile:
            self._compile()

    @torch.inference_mode()
    def __call__(self, batch: WindowBatch) -> Tensor:
        """Return the probabilities, float32 [N, size, size], of one batch; they are overwritten by the next call.

        When this returns the batch's buffers may be filled again. Raises ResourceError when a single window does not
        fit into memory, ModelError when the network's output has another shape, and Stopped between two passes.
        """
        pixels, valid = self._to_device(batch)
        if len(self._probabilities) < len(pixels):
            self._probabilities = torch.empty((len(pixels), *pixels.shape[2:]), device=self.settings.device)
        probabilities = self._probabilities[: len(pixels)]
        while True:
            try:
                for start in range(0, len(pixels), self.together):
                    if start:
                        self._progress.advance(0)
                    part = slice(start, start + self.together)
                    self._run(pixels[part], None if valid is None else valid[part], probabilities[part])
                return probabilities
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.together == 1:
                    raise ResourceError(
                        f"out of memory on {self.settings.device} with one {self.settings.size} px window;"
                        " use --precision bf16, a smaller model, or another --device"
                    ) from error
            self.together //= 2  # only here, with the error, is what its frames held let go of
            self._progress.say(f"out of memory: going on with {self.together} windows in a batch")
            if self._copying is not None:
                torch.cuda.empty_cache()
            if self.steady:
                raise BatchChanged

    def _run(self, pixels: Tensor, valid: Tensor | None, probabilities: Tensor) -> None:
        """Fill `probabilities` with the mean over the views of each window."""
        seen = probabilities
        for number, view in enumerate(self._views):
            if number:
                self._progress.advance(0)
            if number == 1:
                seen = torch.empty_like(probabilities)
            with autocast(self.settings.device, self.settings.precision):
                logits = self.segmenter(view.look(pixels), None if valid is None else view.look(valid))
            if logits.shape != (len(pixels), 1, *pixels.shape[2:]):
                raise ModelError(
                    f"the network gave logits of shape {tuple(logits.shape)} for pixels {tuple(pixels.shape)};"
                    " expected one logit a pixel"
                )
            scaled = logits[:, 0] if self.settings.temperature == 1 else logits[:, 0] / self.settings.temperature
            torch.sigmoid(scaled, out=seen)
            if number:
                probabilities += view.undo(seen)
        if len(self._views) > 1:
            probabilities /= len(self._views)

    def _compile(self) -> None:
        """Translate the network and run it once, so that what is missing is known before a scene is read."""
        segmenter, settings = self.segmenter, self.settings
        whole = Segmenter(translated(segmenter.network), segmenter.mean.tolist(), segmenter.std.tolist())
        self.segmenter = whole.to(settings.device).eval()
        self._progress.say("compiling the network; this takes a while")
        batch = WindowBatch.empty(settings.batch, segmenter.bands, settings.size, pinned=False)
        batch.pixels.zero_()
        try:
            self(batch)
        except (RuntimeError, ImportError, OSError) as error:
            raise compile_error(error, settings.device) from error

    def _to_device(self, batch: WindowBatch) -> tuple[Tensor, Tensor | None]:
        """Copy the batch to the device; on CUDA in a stream of its own, while the batch before it is computed."""
        device = self.settings.device
        if self._copying is None:
            return batch.pixels.to(device), batch.valid.to(device) if batch.masked else None
        self._running.append(mark(device))
        if len(self._running) > 1:  # the host stays at most two batches ahead, which bounds the device's memory
            self._running.pop(0).synchronize()
        with torch.cuda.stream(self._copying):
            pixels = batch.pixels.to(device, non_blocking=True)
            valid = batch.valid.to(device, non_blocking=True) if batch.masked else None
        self._copying.synchronize()
        for tensor in (pixels, valid):
            if tensor is not None:
                tensor.record_stream(torch.cuda.current_stream(device))
        return pixels, valid


def place_on_device(
    segmenter: Segmenter, card: ModelCard, options: PredictOptions, device: torch.device, progress: Progress
) -> Forward:
    """Return the segmenter on its device, set up by the card and the options; raises DeviceError and UsageError."""
    size = options.window or card.tile_size
    settings = EngineSettings(
        size=size,
        overlap=card.overlap if options.overlap is None else options.overlap,
        batch=options.batch or automatic_batch(device, size, options.tta),
        device=device,
        precision=pick_precision(options.precision, device),
        temperature=card.temperature,
        blend=options.blend,
        tta=options.tta,
        planes=options.planes,
        compile=options.compiled,
    )
    return Forward(segmenter, settings, progress)


def automatic_batch(device: torch.device, size: int, tta: Symmetry = "none") -> int:
    """Return how many windows of `size` run together by default: the work of 32 windows of 512 px on a GPU, of 2 else.

    Elsewhere more is no faster, a stop waits for a pass, and what it throws away is a batch with all its views: on two
    busy cores 4 windows take unetplusplus-r34 14 s, 2 take it 6 s.
    """
    windows = 32 if device.type == "cuda" else 2 / len(views_of(tta))
    return max(1, int(windows * 512 * 512 / (size * size)))


def mark(device: torch.device) -> torch.cuda.Event:
    """Return an event that happens once the CUDA device has done what it has been given so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _stream_of(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a square window."""

    turned: bool
    """Whether rows and columns change places, after mirroring."""
    axes: tuple[int, ...]
    """The axes that are mirrored: -2 rows, -1 columns."""

    def look(self, windows: Tensor) -> Tensor:
        """Return the windows [..., size, size] as seen this way."""
        mirrored = windows.flip(self.axes) if self.axes else windows
        return mirrored.transpose(-2, -1).contiguous() if self.turned else mirrored

    def undo(self, windows: Tensor) -> Tensor:
        """Return what `look` was given."""
        turned = windows.transpose(-2, -1) if self.turned else windows
        return turned.flip(self.axes) if self.axes else turned


def views_of(symmetry: Symmetry) -> tuple[View, ...]:
    """Return the views of a window, itself first: 1, 4 or 8."""
    mirrors = ((), (-2,), (-1,), (-2, -1)) if symmetry != "none" else ((),)
    turns = (False, True) if symmetry == "d4" else (False,)
    return tuple(View(turned, axes) for turned in turns for axes in mirrors)


def batch_size(settings: EngineSettings, lattice: Lattice) -> int:
    """Return how many windows a batch holds: the same for all scenes of a group, for networks answer to a batch's size.

    A compiled network is given one size alone.
    """
    return settings.batch if settings.compile else min(settings.batch, lattice.group_count)
