"""The images and the person's captions are those of the world that the runs were evaluated in."""

import numpy as np
import pytest

from evlgen.data import worlds
from evlgen.data.images import decode
from evlgen.errors import UserError
from experiments.scales import evlgen
from paper_figures import sample_captions as subject
from paper_figures import style
from tests.evlgen import real_sets
from tests.paper_figures import made_up


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("EVLGEN_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("EVLGEN_DATA", raising=False)


def drawn(world):
    style.apply()
    figure = subject.figure_of([{"0": "said by OPT"}, {"0": "said by LLaMA"}], world)
    images = [np.asarray(axis.images[0].get_array()) for axis in figure.axes if axis.images]
    texts = [text.get_text().replace("\n", " ") for axis in figure.axes for text in axis.texts]
    return images, [text for text in texts if text]


def test_photographs_and_what_people_said_of_them(tmp_path, monkeypatch):
    monkeypatch.setenv("EVLGEN_DATA", str(tmp_path / "data"))
    real_sets.coco(tmp_path / "data/coco")
    images, texts = drawn(worlds.of(evlgen("paper").data))
    first = 14  # of the test split, which has four images
    assert len(images) == 4
    assert all(np.array_equal(image, decode(real_sets.jpeg(first + i), "")) for i, image in enumerate(images))
    assert texts[:3] == [real_sets.caption(first), "said by OPT", "said by LLaMA"]
    assert texts[3:] == [real_sets.caption(first + i) for i in (1, 2, 3)]


def test_the_miniworld():
    world = worlds.get("miniworld")
    images, texts = drawn(world)
    assert len(images) == 12
    assert np.array_equal(images[11], world.image("coco_test", 11))
    assert texts[0] == world.captions("coco_test", 0)[0]


def test_missing_photographs_are_named():
    made_up.fill("table2", "paper", seeds=1)
    with pytest.raises(UserError, match="EVLGEN_DATA is not set"):
        subject.draw("paper")


def test_the_figure_is_written():
    made_up.fill("table2", "smoke", seeds=1)
    pdf, png = subject.draw("smoke")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.stat().st_size > 50_000
