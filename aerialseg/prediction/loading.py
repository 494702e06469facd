"""The model of a run, on its device; this is where torch is imported, once it is known that there is work."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aerialseg.errors import ModelError, one_line
from aerialseg.files import sha256_of

if TYPE_CHECKING:
    import torch

    from aerialseg.prediction.forward import Forward
    from aerialseg.prediction.work import Run


def find_device(run: Run) -> torch.device:
    """Return the device that the run's options stand for; raises DeviceError and Stopped."""
    # Threads that spin while they wait take the cores from reader and writer: up to ten times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from aerialseg.models.device import pick_device

    run.progress.advance(0)  # an import takes seconds; a stop that came meanwhile is heard here
    return pick_device(run.options.device)


def load_forward(run: Run) -> Forward:
    """Load the run's model; raises DeviceError, ModelError (also when it is not the one hashed before) and Stopped."""
    device = find_device(run)
    from aerialseg.models.device import pick_precision
    from aerialseg.models.package import load_model
    from aerialseg.prediction.forward import EngineSettings, Forward, automatic_batch

    run.progress.advance(0)
    precision = pick_precision(run.options.precision, device)
    segmenter, card = load_model(run.model)
    run.progress.advance(0)
    if sha256_of(run.model) != run.model_hash:  # a training goes on improving it
        raise ModelError(f"{one_line(run.model)}: changed while the scenes were checked; run again")
    settings = EngineSettings(
        size=run.window,
        overlap=run.overlap,
        batch=run.options.batch or automatic_batch(device, run.window, run.options.tta),
        device=device,
        precision=precision,
        temperature=card.temperature,
        blend=run.options.blend,
        tta=run.options.tta,
        agreement=run.options.agreement,
        compile=run.options.compiled,
    )
    return Forward(segmenter, settings, run.progress)
