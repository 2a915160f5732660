"""``scripts/draw_rooms.py``: the picture of the rooms is the one that the source gives, and a cycle is an error."""

import pytest

from scripts.draw_rooms import PICTURE, bottom_up, imports, reduced, svg


def test_the_picture_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == svg(imports()), "run python -m scripts.draw_rooms"


def test_arrows_that_a_longer_path_implies_are_left_out() -> None:
    arrows = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert reduced(arrows) == {"top": {"middle"}, "middle": {"bottom"}, "bottom": set()}


def test_a_cycle_is_an_error_that_names_its_rooms() -> None:
    with pytest.raises(SystemExit, match=r"data <- plugins <- data|plugins <- data <- plugins"):
        bottom_up({"data": {"plugins"}, "plugins": {"data"}, "utils": set()})
