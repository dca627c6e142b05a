"""The report: it shows what the files hold, and needs no other file."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from mnist_mamba.atomic_write import write_json
from pipeline.common import paths
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.params import load_params
from pipeline.report import results
from pipeline.report.__main__ import make_page
from pipeline.report.files import SOURCES, ReportError
from pipeline.series.trainings import load_series
from tests.pipeline.imports import ROOT
from tests.pipeline.project import SMALL, copy_project, run_module, set_params

TIMES = "\N{MULTIPLICATION SIGN}"
BLOCKS = {"p", "li", "dt", "dd", "tr", "th", "td", "caption", "figcaption", "h1", "h2", "h3", "h4"}
VOID = {"meta", "link", "img", "br", "hr"}
NAMES = ["ant", "bee", "cow", "dog\u2028and\x85cat"]  # one of several lines, to str.splitlines
HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"
REQUIRED = [source.path for source in SOURCES.values() if source.required]


class Page(HTMLParser):
    """Elements of a page with their attributes, and texts; fails where tags are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        """Text of each element that has an id, and of the whole page."""
        self.open: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        assert len(attributes) == len(attrs), (tag, attrs)
        self.elements.append((tag, attributes))
        if tag in BLOCKS:
            self.handle_data(" ")
        if tag not in VOID:
            self.open.append((tag, attributes.get("id", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for name in {"", *(name for _, name in self.open)}:
            self.texts[name] = self.texts.get(name, "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def section(self, name: str) -> str:
        """Text of an element, with single spaces."""
        return " ".join(self.texts[name].split())


def page() -> Page:
    """The page of the current folder."""
    return Page(make_page(load_params()))


def metrics(name: str) -> Any:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))


def change(path: str, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    value = json.loads(Path(path).read_text(encoding="utf-8"))
    edit(value)
    write_json(Path(path), value)


def write_lock() -> None:
    """Make dvc.lock agree with the files that are here."""
    lock = yaml.load((ROOT / "dvc.lock").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    for stage in lock["stages"].values():
        for out in stage["outs"]:
            if Path(out["path"]).is_file():
                out["md5"] = file_md5(Path(out["path"]))
    Path("dvc.lock").write_text(yaml.dump(lock, Dumper=yaml.CSafeDumper), encoding="utf-8")


def use_classes(names: list[str], wrong: int = 3) -> None:
    """Replace the test set's results by those of 40 images, the first few misclassified."""
    rows = [
        {"index": i, "label": names[i % 4], "predicted": names[(i + (i < wrong)) % 4]}
        for i in range(40)
    ]
    with Path("plots/predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    rates = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 10}
    scores = {"accuracy": 1 - wrong / 40, "correct": 40 - wrong, "n_test": 40}
    change(
        "metrics/eval.json",
        lambda value: value.update(scores, per_class=dict.fromkeys(names, rates)),
    )
    write_lock()


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page of the files in Git."""
    monkeypatch.chdir(ROOT)
    return page()


@pytest.fixture(scope="module")
def with_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The committed results with four classes, without Git."""
    folder = copy_project(tmp_path_factory.mktemp("report") / "project")
    for name in ("metrics", "plots"):
        shutil.copytree(ROOT / name, folder / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_classes(NAMES)
        Path("artifacts").mkdir()
        key = content_key(load_params())
        Path("artifacts/tracking_key.txt").write_text(key, encoding="utf-8")
        write_lock()
    return folder


@pytest.fixture
def project(with_classes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of these results, as the current folder."""
    folder = shutil.copytree(with_classes, tmp_path / "project")
    monkeypatch.chdir(folder)
    return folder


def check_self_contained(page: Page) -> None:
    """Nothing is fetched, nothing runs, everything has a name, every link leads somewhere."""
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            target = attributes.get(name, "data:")
            if tag in ("a", "use") and target.startswith("#"):
                assert target[1:] in ids, target
            else:
                assert target.startswith("data:"), (tag, target)
        assert "url(" not in attributes.get("style", "")
    style = re.sub(r"/\*.*?\*/", "", (ROOT / "pipeline/report/style.css").read_text("utf-8"))
    assert not re.search(r"url\(|@import|@font-face", style)
    assert all(image["alt"].strip() for image in page.all("img"))


def test_the_committed_page_is_self_contained(committed: Page) -> None:
    check_self_contained(committed)
    assert len(committed.all("img")) == 8
    assert len(committed.all("table")) > 10


def test_the_headline_is_that_of_the_metrics(committed: Page) -> None:
    scores = metrics("eval")
    assert committed.texts["accuracy"] == f"{scores['accuracy']:.2%}"
    us = metrics("benchmark")["us_per_image"]["engine"]["b1"]
    assert committed.texts["us"] == f"{us:.3g} µs"
    assert committed.texts["size"] == f"{scores['model']['file_bytes'] / 1000:.0f} kB"
    assert committed.texts["mismatches"] == str(scores["parity"]["prediction_mismatches"])
    text = committed.section("")
    assert f"{scores['correct']:,} of {scores['n_test']:,} test images" in text
    assert f"{scores['model']['parameters']:,} parameters" in text


def test_the_data_section_has_the_warnings_and_pictures(project: Path) -> None:
    assert "No duplicates between the splits" in page().section("data")
    change("metrics/data.json", lambda value: value.update(warnings=["3 of <40>", "another"]))
    found = page()
    assert "3 of <40>" in found.section("data")
    assert "another" in found.section("data")
    assert "No duplicates" not in found.section("data")
    assert sum("aining" in image["alt"] for image in found.all("img")) == 2
    for path in (paths.METRICS / "data.json", paths.EXAMPLES):
        path.unlink()
    assert "Not measured yet: make repro writes metrics/data.json" in page().section("data")


def test_a_folder_of_pictures_is_the_data_that_the_page_names(project: Path) -> None:
    Path("my/leaves & trees").mkdir(parents=True)
    set_params(project, {**SMALL, "data.dataset": "folder", "data.folder": "my/leaves & trees"})
    text = page().section("")
    assert "on leaves & trees" in text
    assert "(4 classes" in text


def test_sections_show_their_metrics(committed: Page) -> None:
    engine = metrics("bench_engine")
    for load, us in engine["us_per_image"]["onnxruntime"].items():
        ratio = us / engine["us_per_image"]["engine"][load]
        assert f"{us:,.0f} ({ratio:.1f}{TIMES})" in committed.section("latency")
    train = metrics("bench_train")
    assert f"mambapy {train['step_ms']['mambapy']:,.0f} " in committed.section("training-speed")
    for run in metrics("seeds")["runs"].values():
        for value in (run["mean"], *run["test_accuracy"]):
            assert f"{value:.2%}" in committed.section("seeds")
    study, us = metrics("study")["runs"]["base"], metrics("study_speed")["us_per_image"]["base"]
    (row,) = re.findall(r" base (\S+) ± \S+ \S+ ± \S+ (\S+) ", committed.section("study"))
    assert row == (f"{study['val_accuracy']['mean']:.2%}", f"{us['b100']:.0f}")
    for row in metrics("eval")["robustness"].values():
        for strength, accuracy in row.items():
            assert f"{strength}: {accuracy:.1%}" in committed.section("robustness")


def test_the_confusion_matrix_counts_the_predictions(committed: Page) -> None:
    with (ROOT / "plots/predictions.csv").open(newline="", encoding="utf-8") as file:
        counts = Counter((row["label"], row["predicted"]) for row in csv.DictReader(file))
    wrong = {pair: n for pair, n in counts.items() if pair[0] != pair[1]}
    assert f" {sum(wrong.values())} mistakes, " in committed.section("mistakes")
    (label, predicted), n = max(wrong.items(), key=lambda item: item[1])
    assert f"{label} read as {predicted} ({n}{TIMES})" in committed.section("confusion")
    assert f"{len(wrong)} pairs" in committed.section("confusion")
    for label in metrics("eval")["per_class"]:
        row = [str(counts[label, name]) for name in metrics("eval")["per_class"]]
        shown = " ".join(n for n in [label, *row] if n != "0")
        assert f" {shown} " in committed.section("confusion")


def test_lineage_is_that_of_the_lock_and_of_git(committed: Page) -> None:
    lineage = committed.section("lineage")
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    assert all(out["md5"] in lineage for stage in stages.values() for out in stage["outs"])
    git = ["git", "rev-parse", "HEAD"]
    assert subprocess.run(git, capture_output=True, text=True).stdout.strip() in lineage
    assert f"d_model: {load_params().model.d_model}" in lineage


def test_other_data_has_its_own_classes(project: Path) -> None:
    shown = page()
    check_self_contained(shown)
    assert "4 classes" in shown.section("")
    assert shown.texts["accuracy"] == "92.50%"
    assert "bee read as cow" in shown.section("confusion")
    assert "none: not a Git repository" in shown.section("lineage")
    assert not [a for a in shown.all("p") if a.get("class") == "doubt"]
    assert make_page(load_params()) == make_page(load_params())


def test_a_model_without_mistakes(project: Path) -> None:
    use_classes(NAMES, wrong=0)
    shown = page()
    check_self_contained(shown)
    assert "Every test image is classified correctly" in shown.section("mistakes")
    assert "91.24% to 100.00%" in shown.section("")


@pytest.mark.parametrize(
    ("path", "section", "command"),
    [
        ("plots/misclassified.png", "mistakes", "make repro"),
        ("plots/reliability.png", "calibration", "make repro"),
        ("plots/curves.png", "training", "make repro"),
        ("metrics/seeds.json", "seeds", "make seeds"),
        ("metrics/study.json", "study", "make study"),
        ("metrics/study_speed.json", "study", "make study"),
        ("metrics/benchmark.json", "latency", "dvc repro -sf benchmark"),
        ("metrics/bench_engine.json", "latency", "make bench-engine"),
        ("metrics/bench_train.json", "training-speed", "make bench-train"),
    ],
)
def test_a_missing_optional_file_is_replaced_by_its_command(
    project: Path, path: str, section: str, command: str
) -> None:
    text = f"{command} writes {path}"
    assert text not in page().section(section)
    Path(path).unlink()
    shown = page()
    check_self_contained(shown)
    assert text in shown.section(section)


def test_an_unfinished_series_says_what_it_lacks(project: Path) -> None:
    wanted = load_series("seeds")

    def fill(results: dict[str, Any]) -> None:
        run = results["runs"]["tiny"]
        results["runs"] = dict.fromkeys(wanted.runs, run)

    change("metrics/seeds.json", fill)
    assert "trainings are done" not in page().section("seeds")
    change("metrics/seeds.json", lambda value: value["runs"].pop("tiny"))
    assert re.search(r"\d+ of \d+ trainings are done, none of tiny", page().section("seeds"))


def test_series_of_another_data_set_are_not_shown(project: Path) -> None:
    """After a run on other data, metrics/ and plots/ still have the series of MNIST."""
    pictures = len(page().all("img"))
    lock = yaml.safe_load(Path("dvc.lock").read_text(encoding="utf-8"))
    for out in lock["stages"]["prepare"]["outs"]:
        out["md5"] = "0" * 32
    Path("dvc.lock").write_text(yaml.safe_dump(lock), encoding="utf-8")
    shown = page()
    check_self_contained(shown)
    for name in ("seeds", "study"):
        text = shown.section(name)
        assert f"make {name} writes metrics/{name}.json" in text
        assert not re.search(r"\d%|± |trainings are done", text)
    assert len(shown.all("img")) == pictures - 2
    # The benchmarks' own model belongs to no data set.
    assert "frozen benchmark model" in shown.section("latency")
    assert "ONNX Runtime" in shown.section("latency")


def test_threads_that_do_not_help_are_explained(project: Path) -> None:
    def timed(us: float) -> str:
        times = {"engine": {"b1": 170.0, "b100": 160.0}, "engine_all_threads": {"b1000": us}}
        change("metrics/benchmark.json", lambda value: value["us_per_image"].update(times))
        return page().section("latency")

    assert "took longer than one" in timed(161.0)
    assert "took longer than one" not in timed(159.0)
    columns = timed(159.0).count("batch of 1,000")  # also of the frozen benchmark model
    change("metrics/benchmark.json", lambda value: value["us_per_image"].pop("engine_all_threads"))
    text = page().section("latency")
    assert "took longer than one" not in text
    assert text.count("batch of 1,000") == columns - 1


def test_without_validation_there_are_training_curves(project: Path) -> None:
    def forget(points: list[dict[str, Any]]) -> None:
        for point in points:
            point["val_loss"] = point["val_accuracy"] = None

    change("plots/curves.json", forget)
    change("metrics/train.json", lambda value: value.pop("val"))
    shown = page()
    check_self_contained(shown)
    assert "no validation images were held out" in shown.section("training")
    assert "validation error" not in shown.section("training")


def insert(text: str) -> None:
    """Use a text wherever the files hold free text."""
    shutil.copytree(ROOT / "metrics", "metrics", dirs_exist_ok=True)
    use_classes([*NAMES[:3], text])
    change("metrics/eval.json", lambda value: value["robustness"].update({text: {"1": 0.5}}))
    change("metrics/seeds.json", lambda value: value["runs"].update({text: value["runs"]["tiny"]}))
    change("metrics/study.json", lambda value: value["runs"].update({text: value["runs"]["base"]}))
    change(
        "metrics/study_speed.json",
        lambda value: value["us_per_image"].update({text: {"b1": 1, "b100": 1}}),
    )
    for name in ("bench_engine", "bench_train"):
        change(
            f"metrics/{name}.json",
            lambda value: value.update(cpu=text, did_not_finish={text: text}),
        )
    change("metrics/benchmark.json", lambda value: value.update(cpu=text))


def test_nothing_in_the_files_becomes_markup(project: Path) -> None:
    insert("Zen")
    plain = page()
    insert(HOSTILE)
    hostile = page()
    check_self_contained(hostile)
    for tag in ("img", "script", "td", "p"):
        assert len(hostile.all(tag)) == len(plain.all(tag)), tag
    for section in ("confusion", "robustness", "seeds", "study", "latency", "training-speed"):
        assert HOSTILE in hostile.section(section), section


def test_all_missing_files_are_told_at_once(project: Path) -> None:
    for path in REQUIRED:
        path.unlink()
    done = run_module(project, "pipeline.report")
    assert done.returncode == 1
    assert all(f"{path} not found: run `make repro`" in done.stderr for path in REQUIRED)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "path", ["metrics/eval.json", "metrics/seeds.json", "plots/curves.json", "dvc.lock"]
)
@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[1]", "3"])
def test_a_damaged_file_is_an_error(project: Path, path: str, text: str) -> None:
    Path(path).write_text(text, encoding="utf-8")
    with pytest.raises(ReportError, match=r"has no|cannot be read|expected structure"):
        page()


def test_a_missing_key_is_an_error_that_names_file_and_command(project: Path) -> None:
    change("metrics/bench_train.json", lambda value: value["long"].pop("step_ms"))
    with pytest.raises(ReportError, match=r"bench_train.json has no 'step_ms': run `make bench-"):
        page()


def test_predictions_of_another_run_are_an_error(project: Path) -> None:
    change("metrics/eval.json", lambda value: value.update(correct=36))
    with pytest.raises(ReportError, match=r"has 37 of 40 correct, metrics/eval.json has 36 of 40"):
        page()


def test_results_that_do_not_belong_together_are_doubted(project: Path) -> None:
    change("metrics/train.json", lambda value: value.update(epochs=4))
    assert "Not as in dvc.lock: metrics/train.json." in page().section("")
    params = Path("params.yaml").read_text(encoding="utf-8").replace("d_state: 4", "d_state: 5")
    Path("params.yaml").write_text(params, encoding="utf-8")
    assert "Params or sources have changed" in page().section("")


def test_the_command_writes_the_page(project: Path) -> None:
    done = run_module(project, "pipeline.report", "--output", "a/b.html")
    assert done.returncode == 0, done.stderr
    assert Path("a/b.html").read_text(encoding="utf-8") == make_page(load_params())


def test_the_pareto_front_is_what_no_other_point_beats() -> None:
    points = {"cheap": (1.0, 0.5), "good": (2.0, 0.9), "dear": (3.0, 0.9), "bad": (2.0, 0.4)}
    assert results.pareto_front(points) == {"cheap", "good"}
