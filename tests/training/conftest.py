"""One small set of tiles for all training tests; never written to."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tiles import write_tileset

from aerialseg.geo.tiles.tileset import TileSet, load_tileset


@pytest.fixture(scope="session")
def tiles_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tileset(tmp_path_factory.mktemp("tiles"))


@pytest.fixture(scope="session")
def tiles(tiles_folder: Path) -> TileSet:
    return load_tileset(tiles_folder)
