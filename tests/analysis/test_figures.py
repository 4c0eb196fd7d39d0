"""Figures say what the numbers say; a criterion looks the same everywhere and unlike any other."""

import base64
import io
import itertools
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from synthetic_records import three_seeds

import pai_lib as pai
from pai_lib.analysis import accuracy_figures, dark, figures, mask_figures, tables
from pai_lib.pruning import criteria

mpl.use("Agg")
plt = figures.plt


@pytest.fixture
def frame():
    return three_seeds()


def test_every_criterion_has_a_look_of_its_own():
    looks = [tuple(style.values()) for style in figures.criterion_styles().values()]
    assert len(set(looks)) == len(looks) == len(pai.CRITERIA) + 1  # and the dense network


def test_a_new_criterion_gets_a_look_without_a_line_here(monkeypatch):
    monkeypatch.setattr(criteria, "CRITERIA", {**pai.CRITERIA})
    monkeypatch.setattr(figures, "CRITERIA", criteria.CRITERIA)
    before = figures.criterion_styles()
    pai.criterion("squared", "SQ", "Squared", "g^2", "lee2019")(lambda gradient: gradient**2)
    after = figures.criterion_styles()
    assert after["squared"]["color"] == before["snip"]["color"]
    assert after["squared"] not in before.values()
    assert {key: after[key] for key in before} == before


def test_summary_is_mean_deviation_and_count(frame):
    summary = tables.summarize(frame).set_index(["criterion", "sparsity"])
    assert summary.loc[("snip", 0.9), "mean"] == pytest.approx(0.72)
    assert summary.loc[("snip", 0.9), "sd"] == pytest.approx(0.01)  # of 0.71, 0.72, 0.73
    assert summary.loc[("snip", 0.9), "n"] == 3
    assert np.isnan(summary.loc[("dense", 0.0), "sd"])


def test_a_failed_run_is_not_averaged(frame):
    frame.loc[frame["criterion"] == "random", "test_accuracy"] = np.nan
    assert set(tables.summarize(frame)["criterion"]) == {"dense", "snip"}


def test_table_and_sentence(frame):
    table = tables.accuracy_table(frame)
    assert list(table.index) == ["Dense", "Random", "SNIP"]
    assert table.loc["SNIP", "sparsity 0.9"] == "72.00 ± 1.00"
    assert table.loc["Dense", "sparsity 0"] == "90.00"
    told = "at sparsity 0.9, of 2 criteria (n = 3) from SNIP 72.0 % down to Random 50.0 %; "
    assert tables.best_and_worst(frame).startswith(told)
    assert "(n = 2 to 3) from SNIP 72.0 %" in tables.best_and_worst(frame.drop(index=len(frame) - 6))
    alone = tables.best_and_worst(frame[(frame["criterion"] == "random") & (frame["sparsity"] == 0.9)])
    assert alone == "at sparsity 0.9, Random 50.0 % (n = 3)"


def test_paired_differences_tell_mean_interval_and_number():
    values = pd.Series([1.0, 2.0, 3.0, np.nan])
    figure, alt = figures.paired_differences({"snip": values, "fts": values[:1]}, "gain")
    half = 4.302652729911275 / np.sqrt(3)  # Student's 0.975 quantile with two degrees of freedom
    assert alt.endswith(f"SNIP +2.0\u00a0±\u00a0{half:.1f}, n = 3; FTS +1.0 (one pair), n = 1.")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["SNIP (n = 3)", "FTS (n = 1)"]
    assert figure.axes[0].xaxis.get_label_position() == "top"  # the rows may go on below a screen
    assert written(figure) == ["no difference"]
    assert figure.axes[0].get_xlabel() == "gain\n(percentage points)"
    far, _ = figures.paired_differences({"snip": values - 40, "fts": values[:1]}, "gain")
    assert far.axes[0].get_xlabel() == "gain\n(percentage points, logarithmic beyond ±10)"
    far, _ = figures.paired_differences({"snip": values, "fts": values[:1] - 40}, "gain")
    assert far.axes[0].get_xlabel() == "gain\n(percentage points, logarithmic beyond ±5)"


def test_rows_of_other_labels_have_the_look_of_their_criterion():
    rows = {"one": pd.Series([1.0, 2.0]), "other": pd.Series([3.0])}
    figure, alt = figures.paired_differences(rows, "gain", ["snip", "fts"])
    assert alt.endswith("one +1.5\u00a0±\u00a06.4, n = 2; other +3.0 (one pair), n = 1.")
    assert figure.axes[0].lines[0].get_color() == figures.criterion_styles()["snip"]["color"]
    figure, alt = figures.accuracies_by_seed(rows, ["snip", "fts"])
    assert alt.endswith("Means: one 1.5; other 3.0.")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["one", "other"]


def test_small_multiples_draw_means_in_the_looks_given():
    rows = [(0, 1.0, "a", "left"), (0, 3.0, "a", "left"), (1, 5.0, "a", "right"), (1, 6.0, "b", "right")]
    frame = pd.DataFrame(rows, columns=["x", "y", "line", "panel"])
    looks = {"a": {"color": "#0072B2", "marker": "o"}, "b": {"color": "black", "marker": "s", "dashes": (2, 2)}}
    figure, panels = figures.small_multiples(frame, ("x", "y", "line", "panel"), looks)
    assert list(panels) == ["left", "right"]
    assert panels["left"].lines[0].get_ydata().tolist() == [2.0]
    assert panels["right"].lines[0].get_color() == "#0072B2"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_tables_are_in_the_order_of_the_registry():
    table = tables.by_criterion(pd.DataFrame({"n": [1, 2, 3]}, index=["snip", "dense", "random"]))
    assert table["n"].to_dict() == {"Dense": 2, "Random": 3, "SNIP": 1}


def written(figure):
    return [text.get_text().strip() for text in figure.axes[0].texts]


def test_of_many_criteria_six_have_colours_and_no_labels_touch():
    keys = [key for key in pai.CRITERIA if key != "random"]
    rows = [
        {"criterion": key, "sparsity": level, "seed": 0, "test_accuracy": 0.6 + 0.0001 * place if place else 0.5}
        for place, key in enumerate(["random", *keys])
        for level in (0.9, 0.98)
    ]
    figure, _ = accuracy_figures.against_sparsity(pd.DataFrame(rows), "a network")
    axes = figure.axes[0]
    grey = [line for line in axes.lines if line.get_color() == accuracy_figures.GREY]
    assert len(grey) == len(rows) / 2 - 6
    figure.canvas.draw()
    boxes = sorted((mpl.text.Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == len(rows) / 2
    assert all(a.y0 + 0.9 * a.height <= b.y0 for a, b in itertools.pairwise(boxes))


def test_profiles_are_means_over_seeds_and_none_is_left_out():
    def record(accuracy, b, **look):
        spec = SimpleNamespace(**{"criterion": "random", "scope": "global", "when": "init"} | look)
        return SimpleNamespace(spec=spec, result={"density": {"a": accuracy, "b": b}, "test_accuracy": accuracy})

    looks = [{"criterion": "snip"}] * 6 + [{"scope": "erk"}, {"scope": "equal_worth"}, {"when": "trained"}]
    groups = {f"way {i}": [record(0.5, 0.0, **look), record(0.7, 0.0, **look)] for i, look in enumerate(looks)}
    figure, alt = accuracy_figures.profiles(groups)
    lines = figure.axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[0.6, 0.0]] * 9
    assert written(figure) == [f"way {i}: 60.0 %" for i in range(9)]
    assert "way 8 60.0 %, kept 0.6, 0." in alt
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 4
    order = [line.get_zorder() for line in lines]
    assert order == sorted(order, reverse=True)  # the first is above those that lie below it
    figure.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert min(box.y0 + box.height / 2 for box in boxes) > figure.axes[0].bbox.y0  # none hangs below the axis


def test_the_way_to_a_name_is_dotted_and_seen_on_both_grounds(frame):
    figure, _ = accuracy_figures.against_sparsity(frame, "a network")
    figure.canvas.draw()
    arrows = [text.arrow_patch for text in figure.axes[0].texts]
    assert {arrow.get_linestyle() for arrow in arrows} == {":"}
    for ground in ("white", dark.GROUND):
        assert min(contrast(arrow.get_edgecolor(), ground) for arrow in arrows) >= 3
        dark.darken(figure)


def contrast(color, other):
    """Of WCAG 2.2."""
    linear = [
        [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in mpl.colors.to_rgb(each)]
        for each in (color, other)
    ]
    low, high = sorted(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return (high + 0.05) / (low + 0.05)


def test_letters_in_the_colour_of_a_line_are_legible_on_the_dark_ground():
    figure, axes = plt.subplots()
    for style in figures.criterion_styles().values():
        axes.text(0, 0, "a", color=style["color"])
    figure.canvas.draw()
    dark.darken(figure)
    assert min(contrast(text.get_color(), dark.GROUND) for text in axes.texts) >= 4.5


def test_every_criterion_s_colour_is_strong_enough_on_both_grounds():
    colours = {style["color"] for style in figures.criterion_styles().values()}
    assert min(contrast(colour, "white") for colour in colours) >= 3
    assert min(contrast((dark.INKS | dark.HUES).get(colour, colour), dark.GROUND) for colour in colours) >= 3
    weak = [colour for colour in colours if contrast(colour, dark.GROUND) < 3]
    figure, axes = plt.subplots()
    lines = [axes.plot([0, 1], color=colour)[0] for colour in weak]
    dots, bars = axes.scatter([0, 1], [0, 1], color="#882255", alpha=0.5), axes.bar([0], [1], color="#882255")
    figure.canvas.draw()
    dark.darken(figure)
    drawn = [line.get_color()[:3] for line in lines] + [bars[0].get_facecolor()[:3]]
    assert min(contrast(colour, dark.GROUND) for colour in drawn) >= 3
    *colour, alpha = dots.get_facecolor()[0]
    seen = alpha * np.array(colour) + (1 - alpha) * np.array(mpl.colors.to_rgb(dark.GROUND))
    assert contrast(seen, dark.GROUND) >= 2.5


def test_empty_layers_count_on_a_ground_that_shines_through():
    cells = [("snip", 0.9, 0), ("snip", 0.98, 5), ("fisher_diag", 0.9, 1), ("fisher_diag", 0.98, 20)]
    frame = pd.DataFrame(cells, columns=["criterion", "sparsity", "empty"]).assign(warmup=0, cut=False)
    figure, _ = mask_figures.empty_layers(frame)
    (axes,) = figure.axes
    for ground in ("white", dark.GROUND):
        faces = axes.collections[0].get_facecolors()
        seen = faces[:, 3:] * faces[:, :3] + (1 - faces[:, 3:]) * mpl.colors.to_rgb(ground)
        assert contrast(seen[0], ground) < 1.3  # none is not what strikes
        assert min(map(contrast, (text.get_color() for text in axes.texts), seen)) >= 4.5
        figure.canvas.draw()
        dark.darken(figure)


def test_numbers_are_legible_on_cells_of_every_colour_on_both_grounds():
    values = pd.DataFrame(np.linspace(0, 1, 121).reshape(11, 11))
    values.iat[3, 4] = np.nan  # a cell without a number
    figure, axes = figures._heat_map(values, values.map("{:.1f}".format), "what", (7, 7), vmin=0, vmax=1)
    faces = np.delete(axes.collections[0].get_facecolors(), 3 * 11 + 4, axis=0)
    for _ in ("light", "dark"):
        assert min(map(contrast, (text.get_color() for text in axes.texts), faces)) >= 4.5
        figure.canvas.draw()
        dark.darken(figure)


def test_a_picture_tells_its_smallest_letters():
    figure, axes = plt.subplots()
    axes.set_title("small", fontsize=4.5)
    with plt.rc_context({"savefig.dpi": 160}):
        image = Image.open(io.BytesIO(base64.b64decode(dark.png(figure, "white"))))
    assert float(image.text[dark.LETTERS]) == pytest.approx(4.5 / 72 * 160, abs=0.1)


def test_accuracy_figure_tells_its_numbers(frame):
    figure, alt = accuracy_figures.against_sparsity(frame, "a network on some data")
    assert alt.endswith("At sparsity 0.98, in percent: SNIP 71.2, Random 50.0.")
    assert written(figure) == ["Random (3)", "SNIP (3)", "Dense (1)"]
    assert figure.axes[0].get_ylim()[0] < 50
    frame.loc[(frame["criterion"] == "random") & (frame["sparsity"] == 0.98), "test_accuracy"] = 0.1
    figure, _ = accuracy_figures.against_sparsity(frame, "a network on some data")
    assert figure.axes[0].get_ylim()[0] > 40  # named below instead
    assert figure.axes[0].get_xlabel().endswith("removed)\n↓ at 0.98: Random 10 %")
    assert written(figure) == ["SNIP (3)", "Dense (1)"]
    more = frame[frame["criterion"] == "snip"]  # so that two of many are dead, of two accuracies
    several = [more.assign(criterion=key, test_accuracy=0.7) for key in ("fts", "hts", "magnitude")]
    several += [more[more["sparsity"] == 0.98].assign(criterion="fisher_diag", test_accuracy=0.12)]
    figure, _ = accuracy_figures.against_sparsity(pd.concat([frame, *several]), "a network on some data")
    assert figure.axes[0].get_xlabel().endswith("\n↓ at 0.98: FD, Random 10 to 12 %")
    frame.loc[frame["criterion"] == "dense", "test_accuracy"] = 0.2  # its line stays in sight
    figure, _ = accuracy_figures.against_sparsity(frame, "a network on some data")
    assert figure.axes[0].get_ylim()[0] < 20


def test_empty_layers_are_named():
    kept = torch.tensor([[True, False], [False, False]])
    masks = {"snip": {"a.weight": kept, "b.weight": kept}, "fts": {"a.weight": kept, "b.weight": kept & False}}
    figure, alt = figures.layer_densities(masks)
    assert alt.endswith("Layers left empty: FTS 1.")
    assert figure.axes[0].get_xticklabels()[0].get_text() == "a"


def test_overlap_of_equal_masks_is_one():
    kept = {"w": torch.tensor([True, False])}
    figure, alt = figures.mask_overlap({"snip": kept, "fts": kept, "random": {"w": ~kept["w"]}})
    assert alt.endswith("FTS and SNIP 1.00, Random and SNIP 0.00, Random and FTS 0.00.")
    assert written(figure)[:3] == ["1", "1", ".00"]


def test_scatter_reports_the_variance_explained(monkeypatch):
    true = np.array([1.0, 2.0, 3.0])
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: None)
    figure, _ = figures.predicted_against_true([("net", "first", 4 - true, true)])
    figures.show(figure, "Printed as in a book.")
    assert figure.axes[0].get_title() == "first\n$R^2$ = −3.000"
    _, alt = figures.predicted_against_true([("net", "first", true, true), ("net", "second", 0 * true + 2, true)])
    assert alt.endswith("net, first: R² 1.000; net, second: R² 0.000.")


def test_shown_figures_are_saved_where_asked(monkeypatch, tmp_path):
    monkeypatch.setattr("IPython.display.display", lambda *args, **options: None)
    kept = {"w": torch.tensor([True, False])}

    def show(name):
        figures.show(*figures.mask_overlap({"snip": kept, "fts": kept}), name=name)

    show("before")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("PAI_FIGURES", str(tmp_path / "new" / "folder"))
    show("overlap")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert path.name == "overlap.svg"
    assert path.read_text("utf-8").startswith("<?xml")
    figure, _ = figures.mask_overlap({"snip": kept, "fts": kept})
    assert figures.save(figure, tmp_path / "overlap.pdf").read_bytes().startswith(b"%PDF")


def test_shown_figures_carry_alt_text_and_caption(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append((data, options)))
    kept = {"w": torch.tensor([True, False])}
    figures.show(*figures.mask_overlap({"snip": kept, "fts": kept}), caption="A caption.")
    ((data, options),) = shown
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    said = options["metadata"]["image/png"]
    assert said["alt"].startswith("Matrix of overlaps")
    assert (said["caption"], "name" in said) == ("A caption.", False)


def test_shown_figures_have_few_bytes_and_a_white_ground(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **options: shown.append(data["image/png"]))
    figure = plt.figure()
    figure.add_subplot().plot([1, 2], [1, 3], color="#0072B2")
    figures.show(figure, "A line.")
    image = Image.open(io.BytesIO(base64.b64decode(shown[0])))
    assert image.mode == "P"  # a palette: a third of the bytes
    colours = {colour for _, colour in image.convert("RGB").getcolors()}
    assert (255, 255, 255) in colours
    assert (0, 0x72, 0xB2) in colours


def test_inline_figures_take_the_ink_of_their_page():
    figure = plt.figure()
    figure.add_subplot().set_xlabel("sparsity & more", color=figures.INK)
    svg = figures.inline_svg(figure, 'A "figure" of <nothing>')
    root = ElementTree.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'A "figure" of <nothing>'
    assert root.attrib["viewBox"]
    assert "sparsity &amp; more" in svg  # letters, not outlines
    assert "currentColor" in svg
    assert figures.INK not in svg
    assert not plt.fignum_exists(figure.number)
