"""The report's page: complete, harmless, the same every time, and with pictures that show what is wrong."""

from __future__ import annotations

import html
import io
import json
import re
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
from html_pages import check
from jinja2 import UndefinedError
from PIL import Image

from aerialseg.counts import Confusion
from aerialseg.drawing import FOUND, GROUND, INVENTED, MISSED, UNKNOWN
from aerialseg.evaluation import report
from aerialseg.evaluation.objects import ObjectCounts
from aerialseg.evaluation.pairs import Pair
from aerialseg.evaluation.report import describe_model, draw_views, render_page
from aerialseg.evaluation.results import EvaluationReport, SceneScore
from aerialseg.evaluation.scores import EvaluateOptions, decide_rules
from aerialseg.files import sha256_of
from aerialseg.models.package import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]
    Run = Callable[..., tuple[int, str, str]]

EVIL = "</td><script>alert('1')</script>&\"x"


@pytest.fixture
def dataset(tmp_path: Path, mask_file: Write, scene_file: Write) -> Path:
    """Seven pairs, with probabilities and scenes; the prediction is moved by more and more pixels."""
    rng = np.random.default_rng(0)
    for number in range(1, 8):
        truth = np.kron(rng.random((6, 8)) < 0.3, np.ones((20, 20))).astype(np.uint8)
        moved = np.roll(truth, number, 1)
        quanta = (moved * 200 + rng.integers(0, 50, truth.shape)).astype(np.uint8)
        mask_file(tmp_path / f"out/austin{number}.tif", moved, nodata=255)
        mask_file(tmp_path / f"out/probability/austin{number}.tif", quanta, nodata=255)
        mask_file(tmp_path / f"gt/austin{number}.tif", truth * 255)
        scene_file(tmp_path / f"scenes/austin{number}.tif", size=truth.shape)
    return tmp_path


def evaluate(run: Run, folder: Path, *options: object) -> tuple[int, str]:
    code, _, err = run("evaluate", folder / "out", "--masks", folder / "gt", *options)
    return code, err


def test_the_page_holds_everything_and_loads_nothing(dataset: Path, run: Run) -> None:
    page = dataset / "report.html"
    code, err = evaluate(run, dataset, "--report", page, "--scenes", dataset / "scenes")
    assert code == 0, err
    first = page.read_bytes()
    seen = check(first.decode())
    assert evaluate(run, dataset, "--report", page, "--scenes", dataset / "scenes")[0] == 0
    assert page.read_bytes() == first
    code, out, _ = run("evaluate", dataset / "out", "--masks", dataset / "gt", "--json")
    scored = json.loads(out)
    overall = scored["overall"]
    low, high = overall["intervals"]["iou"]
    for text in (
        f"{overall['iou']:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{overall['object_f1']:.4f}",
        "By city",
        "austin",
    ):
        assert text in seen.text
    assert first.decode().count("<svg") == 2
    assert "over the scene" in seen.text
    places = [str(dataset / name) for name in ("out", "gt", "report.html", "scenes")]
    expected = "aerialseg evaluate {} --masks {} --report {} --scenes {}".format(*places)
    assert expected in seen.text
    assert len(seen.images) == 2 * 5  # the three worst scenes and the two best
    shown = re.findall(r"<b>(austin\d)</b>", first.decode())
    order = sorted(scored["scenes"], key=lambda name: scored["scenes"][name]["iou"])
    assert shown == [*order[:3], *order[-2:]]


def test_a_scene_without_iou_is_neither_worst_nor_best(dataset: Path, run: Run, mask_file: Write) -> None:
    for number in (8, 9):
        for side in ("out", "gt"):
            mask_file(dataset / side / f"austin{number}.tif", np.zeros((128, 128), np.uint8), nodata=255)
    assert evaluate(run, dataset, "--report", dataset / "r.html")[0] == 0
    shown = re.findall(r"<b>(austin\d)</b>", (dataset / "r.html").read_text())
    assert len(shown) == 5 and not {"austin8", "austin9"} & set(shown)


@pytest.mark.parametrize("name", ["-dash", "--masks", "it's \\ odd", "two\nlines"])
def test_the_command_on_the_page_is_one_that_a_shell_runs(
    tmp_path: Path, run: Run, mask_file: Write, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mask_file(tmp_path / "gt" / f"{name}.tif")
    with rasterio.open(tmp_path / "gt" / f"{name}.tif") as truth:
        mask_file(tmp_path / f"{name}.tif", truth.read(1) // 255, nodata=255)
    monkeypatch.chdir(tmp_path)
    arguments = ["--masks", f"gt/{name}.tif", "--report", "r.html", "--", f"{name}.tif"]
    code, _, err = run("evaluate", *arguments)
    assert code == 0, err
    page = html.unescape((tmp_path / "r.html").read_text())
    command = page.partition("<pre>")[2].partition("</pre>")[0]
    assert "\n" not in command
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    words = shown.stdout.split("\0")[:-1]
    assert words[:2] == ["aerialseg", "evaluate"]
    assert run(*words[1:])[0] == 0
    assert html.unescape((tmp_path / "r.html").read_text()) == page


def test_the_page_says_precision_recall_and_f1_of_every_size() -> None:
    objects = ObjectCounts(true=(10, 4, 0, 0), found=(5, 4, 0, 0), predicted=(20, 3, 1, 0), right=(6, 3, 0, 0))
    scored = SceneScore("x", None, Confusion(1, 1, 1, 1), 0, objects=objects)
    text = check(render_page(EvaluationReport((scored,)))).text
    assert "below 50 m²200.3000.5000.367" in text
    assert "50 to 200 m²31.0001.0001.000" in text
    assert "all240.3750.6430.474" in text


def test_what_comes_from_outside_is_escaped() -> None:
    result = SceneScore(EVIL, EVIL, Confusion(1, 1, 1, 1), 0)
    page = render_page(EvaluationReport((result,), (EVIL,)), model={EVIL: EVIL}, command=EVIL)
    assert check(page).text.count(EVIL) == 6


def test_a_value_that_a_page_lacks_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'scores' is undefined"):
        report.render("comparison.html.j2", title="x", a="a", b="b", warnings=(), scenes=[], command="")


def test_pictures_show_each_pixels_fate(tmp_path: Path, mask_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scene that fits into both pictures is drawn exactly; the colours say found, missed, invented, not counted."""
    rng = np.random.default_rng(3)
    truth, prediction = rng.choice(np.array([0, 1], np.uint8), (2, 60, 70))
    prediction[:5] = 255
    pair = Pair("x", mask_file(tmp_path / "p.tif", prediction, nodata=255), mask_file(tmp_path / "t.tif", truth))
    rules, _ = decide_rules([pair], EvaluateOptions())
    views = draw_views(pair, rules, None)
    expected = np.empty((60, 70, 3), np.uint8)
    for mask, colour in (
        (truth == prediction, GROUND),
        ((truth == 1) & (prediction == 1), FOUND),
        ((truth == 1) & (prediction == 0), MISSED),
        ((truth == 0) & (prediction == 1), INVENTED),
        (prediction == 255, UNKNOWN),
    ):
        expected[mask] = colour
    for png in (views.overview, views.close_up):
        assert np.abs(np.array(Image.open(io.BytesIO(png)).convert("RGB")).astype(int) - expected).max() <= 1
    assert views.errors == ((truth != prediction) & (prediction != 255)).sum()
    monkeypatch.setattr(report, "OVERVIEW", 20)
    small = Image.open(io.BytesIO(draw_views(pair, rules, None).overview))
    assert small.size == (18, 15)  # cells of 4 px


def test_the_close_up_is_where_most_is_wrong(tmp_path: Path, mask_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OVERVIEW", 50)
    monkeypatch.setattr(report, "CLOSE_UP", 40)
    truth = np.zeros((200, 300), np.uint8)
    prediction = truth.copy()
    prediction[121:150, 241:271] = 1
    prediction[20:30, 20:30] = 1
    pair = Pair("x", mask_file(tmp_path / "p.tif", prediction), mask_file(tmp_path / "t.tif", truth))
    views = draw_views(pair, decide_rules([pair], EvaluateOptions())[0], None)
    assert views.errors == 29 * 30
    assert 110 <= views.row <= 121
    assert 231 <= views.col <= 241


def test_a_scene_lies_behind_the_colours(tmp_path: Path, mask_file: Write, scene_file: Write) -> None:
    bright = np.zeros((3, 50, 60), np.uint8)
    bright[:, :, 30:] = 240
    scene = scene_file(tmp_path / "s.tif", bright)
    empty = np.zeros((50, 60), np.uint8)
    pair = Pair("x", mask_file(tmp_path / "p.tif", empty), mask_file(tmp_path / "t.tif", empty))
    rules, _ = decide_rules([pair], EvaluateOptions())
    seen = np.array(Image.open(io.BytesIO(draw_views(pair, rules, scene).overview)).convert("L")).astype(int)
    assert (seen[:, :29] < 5).all()
    assert (seen[:, 31:] > 100).all()


def test_scenes_that_are_missing_or_do_not_fit_are_said(dataset: Path, run: Run, scene_file: Write) -> None:
    (dataset / "scenes/austin7.tif").unlink()
    scene_file(dataset / "scenes/austin6.tif", size=(50, 50))
    code, err = evaluate(run, dataset, "--report", dataset / "r.html", "--scenes", dataset / "scenes")
    assert code == 0
    assert "--scenes has no scene for austin7; shown without" in err
    assert "shown without its scene: " in err
    assert "austin6.tif" in err
    check((dataset / "r.html").read_text())


def test_nothing_of_the_users_is_replaced(dataset: Path, run: Run) -> None:
    page = dataset / "report.html"
    page.write_text("mine")
    code, _ = evaluate(run, dataset, "--report", page)
    assert code == 73
    assert page.read_text() == "mine"
    assert evaluate(run, dataset, "--report", page, "--overwrite")[0] == 0
    assert evaluate(run, dataset, "--report", page)[0] == 0  # it is ours now
    mask = dataset / "out/austin1.tif"
    before = mask.read_bytes()
    assert evaluate(run, dataset, "--report", mask, "--overwrite")[0] == 2
    assert mask.read_bytes() == before
    assert evaluate(run, dataset, "--scenes", dataset / "scenes")[0] == 2
    assert evaluate(run, dataset, "--report", page / "below.html")[0] == 73
    assert not list(dataset.rglob(".aerialseg-*"))


def test_the_model_is_described_by_report_json_and_its_own_card(
    tmp_path: Path, mask_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = ModelCard(preset="p", architecture="unet", encoder="e", bands=1, mean=(1.0,), std=(1.0,), tile_size=64,
                     scores={"val_iou": 0.7}, training={"epoch": 3})  # fmt: skip
    monkeypatch.setattr(report, "read_card", lambda path: card)
    model = tmp_path / "m.safetensors"
    model.write_bytes(b"weights")
    prediction = mask_file(tmp_path / "out/a/x.tif")
    pairs = [Pair("a/x", prediction, prediction)]
    assert describe_model(pairs) == {}
    written = {"command": "predict", "aerialseg": "9.9", "settings": {"overlap": 0.25},
               "model": {"preset": "p", "path": str(model), "sha256": sha256_of(model), "threshold": 0.4}}  # fmt: skip
    (tmp_path / "out/report.json").write_text(json.dumps(written))
    found = describe_model(pairs)
    assert (found["preset"], found["threshold"], found["overlap"]) == ("p", 0.4, 0.25)
    assert (found["architecture"], found["val_iou (in training)"], found["training: epoch"]) == ("unet", "0.7000", "3")
    model.write_bytes(b"changed since")
    assert "architecture" not in describe_model(pairs)
    odd = json.dumps({**written, "model": {"path": 5, "sha256": []}})
    for content, known in (("[]", {}), ("[" * 200_000, {}), (odd, {"model file": 5, "SHA-256": "[]"})):
        (tmp_path / "out/report.json").write_text(content)
        assert known.items() <= describe_model(pairs).items()
        assert bool(known) == bool(describe_model(pairs))
    (tmp_path / "out/report.json").write_text("[]")
    with rasterio.open(prediction, "r+") as mask:
        mask.update_tags(AERIALSEG_MODEL_SHA256="abc", AERIALSEG_THRESHOLD="0.4")
    assert describe_model(pairs) == {"SHA-256": "abc", "threshold": "0.4"}


def test_pages_without_probabilities_objects_or_pixels(tmp_path: Path) -> None:
    nothing = EvaluationReport((SceneScore("x", None, Confusion(), 5),), ("nothing was counted",))
    seen = check(render_page(nothing))
    assert "Take note" in seen.text
    assert "nan" not in seen.text
