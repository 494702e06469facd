"""What a run of predict notes while it runs: what has become of each scene, said line by line, and report.json."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from aerialseg.errors import InUseError, OutputError, StorageError, one_line
from aerialseg.files import write_json
from aerialseg.geo.outputs import MASK, OUTPUTS
from aerialseg.prediction.checks import report_name
from aerialseg.prediction.report import PredictReport, SceneResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aerialseg.geo.scenes import Scene
    from aerialseg.prediction.checks import Run


class RunLog:
    """What has become of each scene so far, by its name; `known` is what other processes made of them before."""

    def __init__(self, run: Run, scenes: Sequence[Scene], known: Mapping[str, SceneResult]) -> None:
        self.run, self.known = run, known
        fresh = {scene.name: SceneResult(scene.name, scene.image, "not started") for scene in scenes}
        self.results: dict[str, SceneResult] = {**fresh, **known}
        self.settings: dict[str, Any] = {}
        self.products: dict[str, Any] = {}
        """What was made of all scenes together."""
        self.loaded: float | None = None
        """When the model was ready."""
        self._said: Counter[str] = Counter()
        """How many scenes a warning was about; it is said of the first one, and counted at last."""

    @property
    def failed(self) -> bool:
        """Whether a scene has failed."""
        return any(result.status == "failed" for result in self.results.values())

    def record(self, result: SceneResult) -> None:
        """Note and show a scene's result; raises its failure when the next scene would be written to the same disk."""
        self.results[result.name] = result
        for warning in result.warnings:
            about = warning.removeprefix(f"{one_line(result.image)}: ")
            self._said[about] += 1
            if self._said[about] == 1:
                self.run.progress.say(f"warning: {warning}")
        if isinstance(result.failure, OutputError | StorageError) and not isinstance(result.failure, InUseError):
            raise result.failure
        if result.failure is None or len(self.results) > 1:  # a single scene's failure is raised, and so shown once
            self.run.progress.say(result.line())

    def write(self) -> PredictReport:
        """Write report.json and return it; warnings that were about many scenes are counted."""
        run = self.run
        for warning, count in self._said.items():
            if count > 1:
                run.progress.say(f"warning: {count:,} scenes: {warning}")
        card = {name: getattr(run.card, name) for name in ("preset", "threshold", "temperature", "gsd_m")}
        model = {"path": None if run.model is None else str(run.model), "sha256": run.model_hash, **card}
        rasters = [output.name for output in OUTPUTS if output != MASK]
        asked = {name: getattr(run.options, name) for name in (*rasters, "polygons", "neighbours", "compiled")}
        settings = {**run.parameters, **asked, **self.settings}
        del settings["model"]
        seconds = time.monotonic() - run.began
        loading = seconds if self.loaded is None else self.loaded - run.began
        report = PredictReport(run.out, model, settings, tuple(self.results.values()), seconds, loading, self.products)
        write_json(run.out / report_name(run.options.shard), report.to_json())
        return report
