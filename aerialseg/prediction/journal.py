"""What has become of each scene of a run so far, and report.json."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aerialseg.errors import OutputError, StorageError
from aerialseg.files import write_json
from aerialseg.prediction.report import PredictReport, SceneResult
from aerialseg.prediction.work import REPORT, report_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aerialseg.errors import AerialsegError
    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.work import Run


class Journal:
    """What has become of each scene so far; a class because it is all state."""

    def __init__(self, run: Run, scenes: Sequence[Scene]) -> None:
        self.run = run
        mine = scenes if run.options.shard is None else run.options.shard.of(scenes)
        self.results = {scene.name: SceneResult(scene.name, scene.image, "not started") for scene in mine}
        self._taken: dict[str, SceneResult] = {}
        self._measured = _measured_before(run.out)
        self.settings: dict[str, Any] = {}
        self.products: dict[str, Any] = {}
        """What was made of all scenes together."""
        self.loaded: float | None = None
        """When the model was ready."""

    def take(self, result: SceneResult) -> None:
        """Note what another process made of a scene; it has been shown already."""
        self._taken[result.name] = self.results[result.name] = result

    @property
    def known(self) -> bool:
        """Whether other processes predicted the scenes before."""
        return bool(self._taken)

    @property
    def failed_here(self) -> bool:
        """Whether a scene has failed in this process."""
        return any(result.status == "failed" and name not in self._taken for name, result in self.results.items())

    def knows_failure(self, name: str) -> bool:
        """Return whether another process failed on the scene."""
        return name in self._taken and self._taken[name].status == "failed"

    def record(self, result: SceneResult) -> SceneResult:
        """Note and show a scene's result; raises its failure when the next scene would be written to the same disk."""
        self.results[result.name] = result
        if result.status == "skipped" and result.name in self._taken:  # done a moment ago, by another process
            self.results[result.name] = self._taken[result.name]
            return result
        if result.status == "skipped":
            kept = self._measured.get((result.name, result.hashes["key"]), {})
            self.results[result.name] = result = replace(result, **kept)
        for warning in result.warnings:
            self.run.progress.say(f"warning: {warning}")
        if isinstance(result.failure, OutputError | StorageError):
            raise result.failure
        if result.failure is None or len(self.results) > 1:  # a single scene's failure is raised, and so shown once
            self.run.progress.say(result.line())
        return result

    def knows(self, error: AerialsegError) -> bool:
        """Return whether the error is already noted as a scene's failure."""
        return any(result.failure is error for result in self.results.values())

    @property
    def failed(self) -> bool:
        """Whether a scene has failed."""
        return any(result.status == "failed" for result in self.results.values())

    def write(self) -> PredictReport:
        """Write report.json and return it."""
        run = self.run
        names = ("preset", "threshold", "temperature", "gsd_m")
        card = {name: getattr(run.card, name) for name in names}
        model = {"path": str(run.model), "sha256": run.model_hash, **card}
        asked = {
            name: getattr(run.options, name)
            for name in ("probability", "agreement", "polygons", "neighbours", "compiled")
        }
        settings = {**run.parameters, **asked, **self.settings}
        del settings["model"]
        seconds = time.monotonic() - run.began
        loading = seconds if self.loaded is None else self.loaded - run.began
        report = PredictReport(run.out, model, settings, tuple(self.results.values()), seconds, loading, self.products)
        write_json(run.out / report_name(run.options.shard), report.to_json())
        return report


def _measured_before(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return what the reports that stand in `out` say of scenes beyond what their files do, by name and done-key."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path in (*sorted(out.glob("report-*-of-*.json")), out / REPORT):
        try:
            for name, entry in json.loads(path.read_bytes())["scenes"].items():
                known = {item: entry[item] for item in ("seconds", "seam_index") if entry.get(item) is not None}
                if all(isinstance(value, float) and 0 <= value < math.inf for value in known.values()):
                    found.setdefault((name, entry["hashes"].get("key")), {}).update(known)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue  # it was damaged, or is not ours
    return found
