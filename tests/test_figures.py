"""How the report's pictures are laid out: whole numbers at whole marks, names that fit, nothing on anything else."""

from itertools import combinations, pairwise

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_report import LENET, make_run, write_table

from experiments import figures, published, records, report
from experiments.tables import TABLES

COUNTS = {"number of tasks learned", "task", "true task", "inferred task", "steps of recovery (test batches seen)"}
LONG = "se_binary_entropy_minimization_of_a_name_without_end"


def drawn(picture: figures.Picture) -> Figure:
    """A picture as it is saved, laid out."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=picture.size)
        FigureCanvasAgg(figure)
        picture.draw(figure)
        figure.canvas.draw()
    return figure


def pictures(*folders) -> dict[str, Figure]:
    experiments, skipped = records.read(folders)
    assert not skipped
    return {picture.name: drawn(picture) for picture in report.page(experiments, published.load())[1]}


def shown_labels(axis) -> list:
    """The labels of the marks that lie on an axis; matplotlib keeps some beyond its ends."""
    low, high = sorted(axis.get_view_interval())
    return [label for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True) if low <= at <= high]


@pytest.fixture
def variants(tmp_path):
    """An experiment of six settings with long names, which were evaluated after two and three tasks."""
    for adaptor in ("se_oneshot_entropy_minimization", LONG):
        for size in (25, 100, 200):
            folder = make_run(
                tmp_path / "MNISTPerm-ablation-output-size",
                f"adaptor={adaptor},output-size={size}",
                **{"tasks": 3, "evaluated": (2, 3), "adaptor": adaptor, "output_size": size, "model": "LeNet"},
            )
            confusion = [(3, task, taken, 1 + (task == taken)) for task in range(3) for taken in range(3)]
            write_table(folder / "confusion.csv", TABLES["confusion"], confusion)
    return tmp_path / "MNISTPerm-ablation-output-size"


@pytest.mark.parametrize("tasks", [1, 2, 3, 7, 30, 1111])
def test_whole_numbers_have_whole_marks(tmp_path, tasks):
    folder = make_run(tmp_path / LENET, "seed=0", tasks=tasks, evaluated=(max(1, tasks // 2), tasks))
    write_table(folder / "confusion.csv", TABLES["confusion"], [(tasks, t, t, 1) for t in range(tasks)])
    write_table(folder / "hopfield.csv", TABLES["hopfield"], [(tasks, 0, step, 3 - step) for step in range(3)])
    steps = make_run(tmp_path / "SplitMNIST-hopsupsup", "seed=0", tasks=tasks, evaluated=(tasks,))
    write_table(steps / "hopfield.csv", TABLES["hopfield"], [(tasks, 0, step, 3 - step) for step in range(3)])
    seen = 0
    for figure in pictures(tmp_path / LENET, tmp_path / "SplitMNIST-hopsupsup").values():
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            if axis.get_label_text() in COUNTS:
                marks = [label.get_text() for label in axis.get_ticklabels() if label.get_text()]
                assert marks and all(mark.isdigit() for mark in marks) and len(set(marks)) == len(marks)
                boxes = [label.get_window_extent() for label in shown_labels(axis)]
                assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
                seen += 1
    assert seen >= 5


def test_tasks_are_named_by_their_number_in_whatever_order_they_were_learned(tmp_path):
    folder = make_run(tmp_path / LENET, "seed=0", tasks=3, evaluated=(3,))
    write_table(
        folder / "adapt_results.csv",
        TABLES["adapt_results"],
        [(n, task, 0.9, 0.9, 1) for n in (2, 3) for task in (7, 4, 5)[:n]],
    )
    experiments, _ = records.read([tmp_path / LENET])
    bars = drawn(figures.of_experiment(experiments[0], published.load())).axes[0]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["4", "5", "7"]


def test_long_names_neither_squeeze_a_panel_nor_lie_on_each_other(variants):
    shown = pictures(variants)
    for figure in shown.values():
        for axes in figure.axes:
            if axes.get_label() != "<colorbar>":
                size = axes.get_window_extent()
                assert min(size.width, size.height) / figure.dpi > 1.5, "inches that are left for the data"
            for axis in (axes.xaxis, axes.yaxis):
                boxes = [label.get_window_extent() for label in shown_labels(axis)]
                assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
            texts = [axes.title, axes.xaxis.label, axes.yaxis.label, *shown_labels(axes.yaxis)]
            for text in (text for text in texts if text.get_text()):
                box, whole = text.get_window_extent(), figure.bbox
                assert box.x0 > -1 and box.y0 > -1 and box.x1 < whole.x1 + 1 and box.y1 < whole.y1 + 1, text
            if legend := axes.get_legend():
                beside = legend.get_window_extent()
                assert beside.x0 >= axes.bbox.x1 - 1 or beside.y0 >= axes.bbox.y1 - 1, "not on the data"
    names = [label.get_text() for label in shown["MNISTPerm-ablation-output-size"].axes[0].get_yticklabels()]
    assert names[-1].replace("\n", " ") == "one-shot H, output-size 200", "short where paper.yaml has a word"


def test_the_numbers_on_bars_stand_apart(tmp_path):
    make_run(tmp_path / LENET, "seed=0", tasks=5, evaluated=(5,))
    axes = pictures(tmp_path / LENET)[LENET].axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 10 and not any(
        one.overlaps(other) for one, other in pairwise(sorted(boxes, key=lambda b: b.x0))
    )


def test_memory_over_accuracy_says_how_many_tasks_and_which_sparsity(tmp_path):
    for sparsity in (4.0, 16.0):
        settings = {"inferred": False, "sparsity": sparsity, "set": "SplitImageNet", "model": "ResNet50"}
        make_run(tmp_path / "rn50-supsup", f"sparsity={sparsity:g}", **settings)
    axes = pictures(tmp_path / "rn50-supsup")["figure-3-left"].axes[0]
    assert axes.get_title().endswith("4 tasks")
    ours = {text.get_text(): text.xy for text in axes.texts}
    for label in ("4", "16"):
        assert any(label == text for text in ours)
    assert len(axes.texts) == 2 + 3 + 2, "two of ours; the paper's three, and its other two methods"


@pytest.mark.parametrize(
    ("epochs", "said"),
    [((10, 10), ", 10 of 250 epochs"), ((2, 10), ", 2 to 10 of 250 epochs"), ((250, 250), ""), ((300, 300), "")],
)
def test_memory_over_accuracy_says_where_tasks_had_fewer_epochs_than_in_the_paper(tmp_path, epochs, said):
    for tasks, each in zip((5, 20), epochs, strict=True):
        settings = {"inferred": False, "set": "SplitCIFAR100", "model": "GEMResNet18", "epochs": each}
        make_run(tmp_path / "rn18-supsup", f"num-tasks={tasks}", tasks=tasks, evaluated=(tasks,), **settings)
    experiments, _ = records.read([tmp_path / "rn18-supsup"])
    picture, _ = report.page(experiments, published.load())[1]
    assert picture.caption.startswith(f"Figure 3 right. SplitCIFAR100, ResNet-18, task given, 5 to 20 tasks{said}. ")
    figure = drawn(picture)
    title = figure.axes[0].title
    assert title.get_text() == f"SplitCIFAR100, ResNet-18, task given\n5 to 20 tasks{said}"
    assert figure.bbox.containsx(title.get_window_extent().x0), "none of it is cut off"


def test_a_published_number_hides_none_of_ours(tmp_path):
    """SupSup with H and with G at the same accuracy, the paper's above them, and a method that falls far below."""
    for name, accuracy in (("supsup_h", "0.9355"), ("supsup_g", "0.9353"), ("psp", "0.3")):
        run = make_run(tmp_path / LENET.replace("supsup_h", name), "seed=0", tasks=250, evaluated=(250,))
        table = run.parent / "results.csv"
        header, *lines = (line.split(",") for line in table.read_text().splitlines())
        for line in lines:
            line[header.index("Accuracy Adapted")] = accuracy
        table.write_text("".join(",".join(line) + "\n" for line in [header, *lines]))
    folders = sorted(tmp_path.iterdir())
    whole, close = pictures(*folders)["figure-4-left"].axes
    assert whole.get_ylim() == (0, 1)
    by_label = {line.get_label(): line for line in close.lines}
    star = by_label.pop("SupSup (H), paper")
    h, g = by_label["SupSup (H)"], by_label["SupSup (G)"]
    assert star.get_zorder() < min(h.get_zorder(), g.get_zorder()), "behind ours"
    assert g.get_markerfacecolor() == "none" and g.get_markersize() > h.get_markersize(), "a ring around a dot"
    tops = [close.transData.transform(line.get_xydata()[-1])[1] for line in (star, h)]
    assert abs(tops[0] - tops[1]) / close.figure.dpi * 72 > star.get_markersize() / 2


def test_the_page_names_every_setting_and_fits_on_a_phone(variants, tmp_path):
    made, _ = report.report([variants], tmp_path / "out")
    page = made.read_text()
    assert '<meta name="viewport" content="width=device-width' in page
    assert page.count('<div class="table"><table>') == page.count("<table>") > 3
    for rule in (
        "prefers-color-scheme: dark",
        ".table { overflow-x: auto; margin:",
        "pre-wrap",
        "img { max-width: 100%",
    ):
        assert rule in page
    experiments, _ = records.read([variants])
    blocks = report.page(experiments, published.load())[0]
    (shown,) = (block for block in blocks if block[0] == "table" and "--output-size" in block[1])
    places = [shown[1].index(flag) for flag in ("--output-size", "--adaptor")]
    assert {tuple(row[place] for place in places) for row in shown[2]} == {
        (str(size), adaptor) for size in (25, 100, 200) for adaptor in ("se_oneshot_entropy_minimization", LONG)
    }
