"""What a run of predict did, scene by scene: the values behind report.json and the lines a user sees."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from aerialseg import __version__
from aerialseg.errors import AerialsegError, SomeScenesFailed, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from aerialseg.geo.outputs import Output

Status = Literal["done", "skipped", "in part", "failed", "not started"]


@dataclass(frozen=True, slots=True)
class SceneResult:
    """What became of one scene; `skipped` means that its outputs were there already, made from the same bytes.

    `in part`: a shard's rows of it are there, others are not yet, or another process finishes it.

    Example:
        >>> report = aerialseg.predict_scenes(aerialseg.find_scenes(["scenes"]), Path("runs/town"), Path("out"))
        >>> [(scene.name, scene.height, scene.width, scene.gsd_m) for scene in report.scenes]
        [('austin6', 256, 256, 0.3), ('vienna1', 256, 256, 0.3)]
    """

    name: str
    image: Path
    status: Status
    height: int | None = None
    width: int | None = None
    gsd_m: float | None = None
    run_gsd_m: float | None = None
    """The GSD at which the network saw it, when that is not its own."""
    neighbours: int = 0
    """How many touching scenes it could see into."""
    outputs: dict[str, Path] = field(default_factory=dict)
    """By the name of the `Output`."""
    seconds: float | None = None
    valid_pixels: int | None = None
    building_pixels: int | None = None
    windows: int | None = None
    windows_run: int | None = None
    resumed_rows: int = 0
    """Rows of it that were there, from an earlier run or another shard, and were not computed again."""
    seam_index: float | None = None
    """How much the probability jumps across window edges, against anywhere else; 1 means that no seam shows."""
    hashes: dict[str, str] = field(default_factory=dict)
    """SHA-256 of `scene` (with its side files), `mask`, `probability`, and the `key` over all that went into them."""
    warnings: tuple[str, ...] = ()
    failure: AerialsegError | None = None

    def failed(self, error: AerialsegError) -> SceneResult:
        """Return the result of a scene that cannot be predicted."""
        return dataclasses.replace(self, status="failed", failure=error)

    def finished(
        self, status: Status, files: Mapping[Output, Path], counts: tuple[int, int], hashes: dict[str, str]
    ) -> SceneResult:
        """Return the result of a scene whose outputs are there; `counts` are its valid and its building pixels."""
        outputs = {output.name: path for output, path in files.items()}
        valid, building = counts
        return dataclasses.replace(
            self, status=status, outputs=outputs, valid_pixels=valid, building_pixels=building, hashes=hashes
        )

    @property
    def mpx(self) -> float:
        """Million pixels; 0 when the scene could not even be opened."""
        return (self.height or 0) * (self.width or 0) / 1e6

    @property
    def building_fraction(self) -> float | None:
        """Building pixels over valid ones; None when there are none, or not known."""
        return (
            self.building_pixels / self.valid_pixels if self.valid_pixels and self.building_pixels is not None else None
        )

    def line(self) -> str:
        """Return what happened, in one line for a person."""
        name = one_line(self.name)
        if self.status == "failed":
            return f"error: {self.failure}"
        if self.status == "in part":
            return f"{name}: this shard's rows are there; it is finished by whoever has the last ones"
        if self.status == "not started":
            return f"{name}: not started"
        fraction = self.building_fraction
        covered = "no valid pixel" if fraction is None else f"{fraction:.1%} building"
        if self.status == "skipped":
            return f"{name}: done before, {covered}"
        seconds = self.seconds or 0.0
        rate = self.mpx / max(seconds, 1e-9)
        resumed = f", {self.resumed_rows:,} rows were there" if self.resumed_rows else ""
        return f"{name}: {self.height}x{self.width}, {covered}, {seconds:.1f} s, {rate:.2f} Mpx/s{resumed}"

    def to_json(self) -> dict[str, Any]:
        """Return the scene's entry in report.json."""
        value = dataclasses.asdict(dataclasses.replace(self, failure=None))
        for key in ("name", "outputs", "failure"):
            del value[key]
        paths = {"image": str(self.image), **{kind: str(path) for kind, path in self.outputs.items()}}
        rate = self.mpx / self.seconds if self.seconds else None
        error = None if self.failure is None else {"exit_code": self.failure.exit_code, "message": str(self.failure)}
        more = {"building_fraction": self.building_fraction, "mpx_per_s": rate, "error": error}
        return {**value, **paths, "warnings": list(self.warnings), **more}


@dataclass(frozen=True, slots=True)
class PredictReport:
    """A run over all scenes, in their order.

    Example:
        >>> scenes = aerialseg.find_scenes(["scenes"])
        >>> report = aerialseg.predict_scenes(scenes, Path("runs/town"), Path("out"))
        >>> report.of("failed"), report.model["threshold"] < 1
        ((), True)
    """

    out: Path
    model: dict[str, Any]
    settings: dict[str, Any]
    scenes: tuple[SceneResult, ...]
    seconds: float
    loading_seconds: float
    """Of `seconds`, what passed before the first scene ran: checks, imports, the model."""
    products: dict[str, Any] = field(default_factory=dict)
    """What was made of all scenes together: the files, and how many buildings there are."""

    @property
    def mpx_per_s(self) -> float | None:
        """Million pixels a second over the scenes of this run, from the first to the last; None when none ran."""
        mpx = sum(scene.mpx for scene in self.of("done"))
        return mpx / max(self.seconds - self.loading_seconds, 1e-9) if mpx else None

    def of(self, *statuses: Status) -> tuple[SceneResult, ...]:
        """Return the scenes with one of these statuses."""
        return tuple(scene for scene in self.scenes if scene.status in statuses)

    def line(self) -> str:
        """Return the totals, in one line for a person."""
        done = self.of("done")
        counts = f"{len(done)} of {len(self.scenes)} scenes predicted, {len(self.of('skipped'))} done before"
        failed = f", {len(self.of('failed'))} failed" if self.of("failed") else ""
        rate = "" if self.mpx_per_s is None else f", {self.seconds:,.1f} s, {self.mpx_per_s:,.2f} Mpx/s"
        part = f", {len(self.of('in part'))} in part" if self.of("in part") else ""
        return f"{counts}{part}{failed}{rate}; masks in {one_line(self.out)}"

    def to_json(self) -> dict[str, Any]:
        """Return report.json; scenes are found by name."""
        counts = {status: len(self.of(status)) for status in ("done", "skipped", "in part", "failed", "not started")}
        mpx = sum(scene.mpx for scene in self.of("done"))
        times = {"seconds": self.seconds, "loading_seconds": self.loading_seconds, "mpx_per_s": self.mpx_per_s}
        totals = {**counts, "mpx": mpx, **times}
        scenes = {scene.name: scene.to_json() for scene in self.scenes}
        run = {"aerialseg": __version__, "command": "predict", "out": str(self.out)}
        return {
            **run,
            "model": self.model,
            "settings": self.settings,
            "totals": totals,
            "products": self.products,
            "scenes": scenes,
        }

    def raise_failures(self) -> None:
        """Raise SomeScenesFailed when some scenes failed and others did not, else the first failure's own error."""
        failed = self.of("failed")
        if not failed:
            return
        first = failed[0].failure or AerialsegError("unknown")
        if self.of("done", "skipped", "in part"):
            raise SomeScenesFailed(
                f"{len(failed)} of {len(self.scenes)} scenes failed; {one_line(self.out / 'report.json')} says why"
            )
        if len(self.scenes) == 1:
            raise first
        raise type(first)(f"no scene could be predicted ({len(failed)} of {len(self.scenes)} failed); first: {first}")
