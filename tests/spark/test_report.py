import csv
import html.parser
import json
import math
import struct

import numpy as np
import pytest
from matplotlib.figure import Figure

from seedlings_spark.reports import evaluation, plots
from seedlings_spark.reports import page as report

SEEDLINGS = (
    "Black-grass",
    "Charlock",
    "Cleavers",
    "Common Chickweed",
    "Common wheat",
    "Fat Hen",
    "Loose Silky-bent",
    "Maize",
    "Scentless Mayweed",
    "Shepherds Purse",
    "Small-flowered Cranesbill",
    "Sugar beet",
)
PAIR = ("Maize", "Charlock")
HEADS = ["images", "predicted", "precision", "recall", "F1", "FPR", "FNR"]
HISTORY = {
    "loss": [2.1, 1.4, 0.9],
    "val_loss": [2.0, 1.5, 1.6],
    "accuracy": [0.2, 0.5, 0.7],
    "val_accuracy": [0.25, 0.45, 0.44],
    "learning_rate": [0.001, 0.001, 0.0001],
}


def example(classes, largest=50):
    """An evaluation of these classes in which every count differs from its transposed one."""
    num = len(classes)
    counts = np.random.default_rng(7).integers(0, largest, (num, num))
    return evaluation.evaluate(counts, classes)


def size_of_png(content):
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


def write(tmp_path, *args, **kwargs):
    names = report.write(str(tmp_path), *args, **kwargs)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    return names


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, cells of tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells, self.is_in_cell = [], [], False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
            self.is_in_cell = True

    def handle_endtag(self, tag):
        self.is_in_cell = self.is_in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.is_in_cell:
            self.cells[-1] += data


HOSTILE = ('<b>&"', "$\\frac{$", "two\nlines\t", "\udcff no UTF-8", "!!", "Ährenmaïs", "x" * 300)


def test_a_report_of_hostile_species_is_written_and_escaped(tmp_path):
    result = example(HOSTILE)
    write(tmp_path, result, history=HISTORY, about={"<script>": "</td><script>"})
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "b" not in page.tags and page.tags.count("script") == 2  # the data and the script, both ours
    assert '<b>&"' in page.cells and "</td><script>" in page.cells and "$\\frac{$" in page.cells
    assert r"two\x0alines\x09" in page.cells and r"\udcff no UTF-8" in page.cells and "x" * 300 in page.cells
    assert json.loads((tmp_path / "metrics.json").read_text())["classes"] == list(HOSTILE)


def test_the_table_of_hostile_species_keeps_to_its_lines_and_width():
    text = report.table(example(HOSTILE))
    assert all(line.isprintable() for line in text.split("\n"))
    assert max(len(line) for line in text.split("\n")) <= 120
    assert sum(line.startswith('<b>&"') for line in text.split("\n")) == 1


def test_an_evaluation_without_images_is_still_a_report(tmp_path):
    result = evaluation.evaluate(np.zeros((2, 2), dtype=np.int64), PAIR)
    write(tmp_path, result, history=None, about={})
    assert json.loads((tmp_path / "metrics.json").read_text())["accuracy"] is None
    assert "accuracy - on 0 images" in report.table(result)


def test_without_a_history_there_are_no_learning_curves(tmp_path):
    names = write(tmp_path, example(PAIR), history=None, about={})
    assert names == ["confusion_matrix.png", "per_species.png", "index.html", "metrics.json"]


@pytest.mark.parametrize("history", [{}, {"loss": []}, {"per_class": [[1, 2], [3, 4]]}])
def test_a_history_without_epochs_is_no_history(tmp_path, history):
    assert "learning_curves.png" not in write(tmp_path, example(PAIR), history=history, about={})
    size_of_png(plots.learning_curves(history))


def test_a_report_over_another_one_leaves_nothing_of_it(tmp_path):
    write(tmp_path, example(PAIR), history=HISTORY, about={"run": 1})
    names = write(tmp_path, example(PAIR), history=None, about={"run": 2})
    assert "learning_curves.png" not in names
    assert json.loads((tmp_path / "metrics.json").read_text())["about"] == {"run": 2}


def test_a_report_that_fails_half_way_has_no_metrics(tmp_path, monkeypatch):
    write(tmp_path, example(PAIR), history=None, about={})

    def full(local, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(report.files, "put", full)
    with pytest.raises(OSError, match="No space"):
        report.write(str(tmp_path), example(PAIR), history=None, about={})
    assert not (tmp_path / "metrics.json").exists()


def test_every_file_of_a_report_is_there_and_parses(hostile_path):
    result, directory = example(SEEDLINGS), hostile_path / "report"
    names = report.write(str(directory), result, history=HISTORY, about={"split": "test"})
    assert names[-1] == "metrics.json"
    assert sorted(names) == sorted(path.name for path in directory.iterdir())
    assert sorted(names) == [
        "confusion_matrix.png",
        "index.html",
        "learning_curves.png",
        "metrics.json",
        "per_species.png",
    ]
    written = json.loads((directory / "metrics.json").read_text())
    assert written == {"format": 1, "about": {"split": "test"}, **result.to_dict()}
    page = Page((directory / "index.html").read_text(encoding="utf-8"))
    for name in names[:3]:
        width, height = size_of_png((directory / name).read_bytes())
        assert 400 < width < 4000 and 200 < height < 4000
    assert set(SEEDLINGS) <= set(page.cells)
    assert f"{result.per_species[4].recall:.4f}" in page.cells


def test_whatever_is_known_about_a_run_becomes_json(tmp_path):
    about = {
        "options": {"rate": math.nan, "sizes": (1, 2), 3: None},
        "number": np.float32(0.5),
        "array": np.array([1.0, math.inf]),
        "path": tmp_path,
    }
    write(tmp_path, example(PAIR), history=None, about=about)
    assert json.loads((tmp_path / "metrics.json").read_text())["about"] == {
        "options": {"rate": None, "sizes": [1, 2], "3": None},
        "number": 0.5,
        "array": [1.0, None],
        "path": str(tmp_path),
    }


@pytest.mark.parametrize("num_classes", [1, 2, 12, 70])
def test_plots_grow_with_the_classes_and_stay_small_enough_to_open(num_classes):
    result = example([f"Small-flowered Cranesbill {number}" for number in range(num_classes)])
    for png in (plots.confusion_matrix(result), plots.per_species(result)):
        width, height = size_of_png(png)
        assert 400 < width < 5000 and 200 < height < 5000


def test_the_same_numbers_give_the_same_bytes():
    result = example(PAIR)
    assert plots.confusion_matrix(result) == plots.confusion_matrix(result)
    assert plots.learning_curves(HISTORY) == plots.learning_curves(HISTORY)


@pytest.mark.parametrize(
    "history",
    [
        {name: values[:1] for name, values in HISTORY.items()},
        {"loss": [math.nan, 1.0, math.nan], "val_loss": [math.inf, None, 2.0]},
        {"loss": [math.nan, math.nan], "learning_rate": [math.nan, math.nan]},
        {"loss": [1e200, 1e-200], "learning_rate": [0.0, 1e-3]},
        {"loss": np.linspace(2, 1, 4), "val_loss": [1.0, 0.5]},
        {"val_loss": [1.0]},
        {f"metric_{number}": [1.0, 2.0] for number in range(7)},
        {"$\\frac{$": [1.0], "loss": [1.0]},
    ],
    ids=["one epoch", "gaps", "nothing finite", "extreme", "validation_freq", "only val", "many", "formula"],
)
def test_learning_curves_are_drawn_from_any_history(history):
    width, height = size_of_png(plots.learning_curves(history))
    assert 400 < width < 4000 and 200 < height < 4000


def test_images_of_each_quarter_of_difficulty_stand_on_those_of_the_easier_ones(tmp_path):
    counts = [[8, 0, 0, 0], [4, 4, 0, 0], [2, 2, 2, 2]]
    axes = Figure().subplots()
    plots._quarters_panel(axes, np.array(counts).T)
    bars = {(bar.get_x() + bar.get_width() / 2, bar.get_y(), bar.get_height()) for bar in axes.patches}
    assert {bar for bar in bars if bar[2]} == {
        *[(1, 0, 8), (2, 0, 4), (2, 4, 4)],
        *[(3, 0, 2), (3, 2, 2), (3, 4, 2), (3, 6, 2)],
    }
    pictures = []
    for shown in ((), counts):
        write(tmp_path, example(PAIR), history=HISTORY, rows_of_quarter=shown, about={})
        pictures.append((tmp_path / "learning_curves.png").read_bytes())
    assert pictures[0] != pictures[1] == plots.learning_curves(HISTORY, None, counts)


def test_a_value_that_is_not_a_number_changes_nothing_but_its_own_point():
    curves = [plots.learning_curves({"loss": [2.1, value, 0.9]}) for value in (1.4, math.nan, None)]
    assert curves[0] != curves[1]
    assert curves[1] == curves[2]


def parsed(text):
    """The per-species lines of a table, read back: species -> cells."""
    lines = text.split("\n")
    assert lines[0].split() == ["species", *HEADS]
    return {line[:28].split("  ")[0].strip(): line.split()[-7:] for line in lines[1 : lines.index("")]}


def test_the_table_has_every_species_with_its_numbers():
    result = example(SEEDLINGS)
    rows = parsed(report.table(result))
    assert list(rows) == list(SEEDLINGS)
    for scores in result.per_species:
        cells = rows[scores.species]
        assert [int(cell) for cell in cells[:2]] == [scores.support, scores.predicted]
        assert [float(cell) for cell in cells[2:]] == pytest.approx(
            [
                scores.precision,
                scores.recall,
                scores.f1,
                scores.false_positive_rate,
                scores.false_negative_rate,
            ],
            abs=5e-5,
        )


def test_the_table_has_the_averages():
    result = example(SEEDLINGS)
    lines = report.table(result).split("\n")
    macro = next(line for line in lines if line.startswith("macro average")).split()[-3:]
    expected = [result.macro_precision, result.macro_recall, result.macro_f1]
    assert [float(cell) for cell in macro] == pytest.approx(expected, abs=5e-5)
    weighted = next(line for line in lines if line.startswith("weighted average")).split()[-1]
    assert float(weighted) == pytest.approx(result.weighted_f1, abs=5e-5)
    assert any(
        line.startswith(f"accuracy {result.accuracy:.4f} on {result.num_images} images") for line in lines
    )


@pytest.mark.parametrize("classes", [("Maize", "Small-flowered Cranesbill"), SEEDLINGS])
@pytest.mark.parametrize("largest", [5, 50_000])
def test_the_table_has_the_confusion_matrix_under_short_names(classes, largest):
    result = example(classes, largest)
    lines = report.table(result).split("\n")
    assert max(len(line) for line in lines) <= 120
    start = next(place for place, line in enumerate(lines) if line.startswith("confusion matrix"))
    heads = lines[start + 1].split()
    rows = lines[start + 2 : start + 2 + len(classes)]
    assert len(set(heads)) == len(classes)
    assert [row.split()[0] for row in rows] == heads
    counts = [[int(cell.replace(".", "0")) for cell in row.split()[-len(classes) :]] for row in rows]
    assert counts == [list(row) for row in result.confusion]


def test_the_short_names_of_the_seedlings_can_be_told_apart():
    text = report.table(example(SEEDLINGS))
    assert "BlGr Char Clea CoCh CoWh FaHe LoBe Maiz ScMa ShPu SmCr SuBe" in text


def test_species_that_would_share_a_short_name_are_numbered():
    lines = report.table(example(("Common wheat", "Maize", "Common whitlow"))).split("\n")
    heads = next(line for place, line in enumerate(lines) if lines[place - 1].startswith("confusion"))
    assert heads.split() == ["#1", "Maiz", "#3"]


def test_with_many_species_the_table_names_the_worst_confusions_instead():
    counts = np.eye(40, dtype=np.int64) * 50
    counts[3, 7] = 9
    counts[8, 1] = 10
    result = evaluation.evaluate(counts, [f"species {number}" for number in range(40)])
    text = report.table(result)
    lines = text.split("\n")
    assert len(parsed(text)) == 40
    assert max(len(line) for line in lines) <= 120
    assert lines[-2].split() == ["species", "8", "species", "1", "10", "16.7%"]
    assert lines[-1].split() == ["species", "3", "species", "7", "9", "15.3%"]


def test_many_species_without_a_mistake_are_said_to_be_so():
    result = evaluation.evaluate(np.eye(40, dtype=np.int64), [f"species {number}" for number in range(40)])
    assert report.table(result).split("\n")[-1] == "no image was taken for another species"


def test_of_a_thousand_species_the_worst_are_shown_and_all_are_in_a_file(tmp_path):
    generator = np.random.default_rng(3)
    supports = np.maximum(1, (2000 / np.arange(1, 1001) ** 1.1).astype(int))
    counts = np.zeros((1000, 1000), np.int64)
    for species, support in enumerate(supports):
        places = np.where(generator.random(support) < 0.7, species, generator.integers(0, 1000, support))
        np.add.at(counts[species], places, 1)
    names = [f"species {number:03}" for number in range(1000)]
    names[999] = "=cmd"
    result = evaluation.evaluate(counts, names)
    hits = np.diag(counts)
    f1 = 2 * hits / (counts.sum(axis=0) + counts.sum(axis=1))
    order = np.lexsort((-supports, f1))[:20]
    lines = report.table(result).split("\n")
    assert len(lines) < 60 and max(map(len, lines)) <= 80
    assert [" ".join(line.split()[:2]) for line in lines[1:21]] == [names[each] for each in order]
    assert lines[21] == "the 20 lowest F1 of 1,000 species (per_species.csv has all)"
    written = write(tmp_path, result, history=None, about={})
    assert "per_species.csv" in written
    rows = list(csv.reader((tmp_path / "per_species.csv").open()))
    assert rows[0] == ["species", *HEADS] and len(rows) == 1001 and rows[-1][0] == "'=cmd"
    assert [float(row[5]) for row in rows[1:]] == pytest.approx(f1, abs=6e-5)
    assert len((tmp_path / "index.html").read_bytes()) < 1_000_000
    for plot in ("confusion_matrix.png", "per_species.png"):
        assert max(size_of_png((tmp_path / plot).read_bytes())) < 3000
    # A later report of few species does not keep the file of another one.
    assert "per_species.csv" not in write(tmp_path, example(PAIR), history=None, about={})
