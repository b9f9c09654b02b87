"""The picture at the top of the README, and how to cite."""

from itertools import combinations
from pathlib import Path

import numpy
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from experiments import teaser

PROJECT = Path(__file__).resolve().parents[1]


def test_all_that_the_teaser_says_can_be_read():
    random = numpy.random.RandomState(0)
    seen = {
        "weights": random.choice([-0.1, 0.1], (28, 28)),
        "masks": random.rand(4, 28, 28) > 0.5,
        "image": random.rand(28, 28),
        "gradients": numpy.array([-1.2, 0.3, -0.1, -20.5]),
    }
    figure = teaser.draw(seen)
    FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.texts]
    assert len(boxes) > 10 and not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    boxes += [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert any("Task 3's" in text.get_text() for text in figure.texts)


def test_what_the_teaser_shows_is_what_the_method_computes():
    seen = teaser.compute()
    assert seen["gradients"].argmin() == teaser.HIDDEN_TASK
    assert seen["right"] > 0.95 * seen["images"]
    assert seen["masks"].shape == (teaser.TASKS, 28, 28) and 0.2 < seen["masks"].mean() < 0.8
    assert len(numpy.unique(numpy.abs(seen["weights"]))) == 1, "signed constants"


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert teaser.main([str(tmp_path / "file" / "teaser.png")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file" / "teaser.png") in line


def test_the_committed_teaser_is_fit_to_be_shown():
    path = PROJECT / "images" / "teaser_supsup.png"
    assert path.stat().st_size < 300 * 1024
    with Image.open(path) as image:
        assert image.width >= 1600, "twice the width that it is shown at"
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255), "readable on a dark page"
    assert "images/teaser_supsup.png" in (PROJECT / "README.md").read_text()


def test_the_citation_names_the_paper():
    about = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert about["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(about)
    paper = about["preferred-citation"]
    assert (paper["title"], paper["year"]) == ("Supermasks in Superposition", 2020)
    assert "NeurIPS 2020" in paper["conference"]["name"] and paper["url"].endswith("2006.14769")
    readme = (PROJECT / "README.md").read_text()
    assert ", ".join(f"{one['given-names']} {one['family-names']}" for one in paper["authors"]) in " ".join(
        readme.replace(">", "").split()
    )
