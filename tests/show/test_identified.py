import shutil
from dataclasses import replace

import pandas as pd
import pytest
from helpers import drawn, write_images

from utils import DataError, gallery, identification_figure, identify, identify_folder, judge_choice, why
from utils.show.identified import CANDIDATES


@pytest.fixture
def folders(calibrated, tmp_path):
    """Some test images, and others of the same classes with one of noise and a broken one, which are searched for."""
    paths = gallery(calibrated).paths
    for number, path in enumerate(paths):
        place = tmp_path / ("references" if number % 3 else "queries") / path.split("/")[-2]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    write_images(tmp_path / "queries", 1)
    (tmp_path / "queries" / "broken.png").write_bytes(b"no image")
    return tmp_path / "queries", tmp_path / "references"


def texts_of(figure):
    texts = [figure.get_suptitle(), figure.get_supxlabel()]
    for axes in figure.axes:
        texts += [axes.get_title(), axes.get_xlabel()]
    return " ".join("\n".join(texts).split())


def test_the_figure_says_what_decides(calibrated):
    result = identify(calibrated, gallery(calibrated).paths[0], fpir=0.2)
    choice = why(calibrated, result)
    verdict = judge_choice(calibrated.network, choice)
    figure = identification_figure(calibrated, result, choice, verdict)
    first, second = result.candidates["class"].iloc[:2]
    text = texts_of(figure)
    for part in (
        f"1: {first}",
        f"2: {second}",
        f"What supports {first} rather than {second}",
        f"What supports {second} rather than {first}",
        verdict.word(),
        str(result.rule),
    ):
        assert part in text
    assert f"Identified as {first} (similarity " in text
    assert (drawn(figure) != drawn(identification_figure(calibrated, result, choice, verdict, opacity=0))).any()
    with pytest.raises(ValueError, match="of another choice"):
        identification_figure(calibrated, result, why(calibrated, result), verdict)


def test_the_figure_of_an_unknown_image(calibrated):
    result = identify(calibrated, gallery(calibrated).paths[0], fpir=0.2)
    unknown = replace(result, accepted=False)
    assert "Unknown, nearest class: " in identification_figure(calibrated, unknown).get_suptitle()


def test_a_folder_is_identified_in_a_table_and_a_page(calibrated, folders, tmp_path):
    queries, references = folders
    table = identify_folder(calibrated, queries, references, tmp_path / "out", 0.2, explained=2)
    written = pd.read_csv(tmp_path / "out" / "identified.csv")
    assert len(written) == len(table) == len(gallery(calibrated, queries)) + 1
    for row in table.dropna(subset=["decision"]).itertuples():
        result = identify(calibrated, row.image, gallery(calibrated, references), 0.2)
        assert row.decision == result.name
        assert row[table.columns.get_loc("nearest 1") + 1] == result.candidates["nearest"].iloc[0]
    assert "broken.png" in table["image"].iloc[-1]
    assert isinstance(table["error"].iloc[-1], str)
    page = (tmp_path / "out" / "identified.html").read_text()
    assert page.count('<article class="row">') == len(table) - 1
    assert page.count("rather than") == 2
    assert "broken.png was left out" in page
    known = table["decision"].dropna() != "unknown"
    assert (page.count("<figcaption>\u2713"), page.count("<figcaption>?")) == (known.sum(), (~known).sum())
    assert page.count("<figure>") <= (len(table) - 1) * (1 + CANDIDATES) + 2


def test_names_of_files_are_never_markup(calibrated, folders, tmp_path):
    queries, references = folders
    hostile = queries / "<b>x.png"
    shutil.copy(next(queries.glob("*.png")), hostile)
    identify_folder(calibrated, queries, references, tmp_path / "out", 0.2, explained=0)
    page = (tmp_path / "out" / "identified.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;x.png" in page


def test_an_image_beside_which_the_gallery_holds_nothing_has_a_row(calibrated, tmp_path):
    (tmp_path / "few" / "a").mkdir(parents=True)
    shutil.copy(gallery(calibrated).paths[0], tmp_path / "few" / "a")
    table = identify_folder(calibrated, tmp_path / "few", tmp_path / "few", tmp_path / "out", 0.2, explained=0)
    assert table["error"].tolist() == ["the gallery has no image besides it"]


def test_a_folder_that_is_missing(calibrated, folders, tmp_path):
    with pytest.raises(DataError, match="absent is not a folder"):
        identify_folder(calibrated, folders[0], tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_page_counts_the_files_of_a_gallery_without_folders_as_classes(calibrated, folders, tmp_path):
    write_images(tmp_path / "flat", 4)
    identify_folder(calibrated, folders[0], tmp_path / "flat", tmp_path / "out", 0.2, explained=0)
    assert "4 classes in " in (tmp_path / "out" / "identified.html").read_text()


def test_figures_of_two_files_have_two_names(calibrated, tmp_path):
    images = gallery(calibrated)
    names = set()
    for folder in "ab":
        path = tmp_path / folder / 'x\n"1".png'
        path.parent.mkdir()
        shutil.copy(images.paths[0], path)
        names.add(identification_figure(calibrated, identify(calibrated, path, images, 0.2)).get_label())
    assert len(names) == 2
    assert all(name.startswith("identified_x_1__") for name in names)
