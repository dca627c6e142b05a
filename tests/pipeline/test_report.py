"""The report: what it says is what the files say, and it needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from mnist_mamba.atomic_write import write_json
from mnist_mamba.data.idx import write_idx
from pipeline.common.content_key import content_key, file_md5
from pipeline.common.params import load_params
from pipeline.report import charts, results
from pipeline.report.__main__ import content, render
from pipeline.report.files import REQUIRED, ReportError
from tests.pipeline.imports import ROOT
from tests.pipeline.project import copy_project, run_module

TIMES = "\N{MULTIPLICATION SIGN}"
BLOCKS = {"p", "li", "dt", "dd", "tr", "th", "td", "caption", "figcaption", "h1", "h2", "h3"}
VOID = {"meta", "link", "img", "br", "hr"}
NAMES = ["ant", "bee", "cow", "dog"]
HOSTILE = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Elements of a page, with their attributes and texts; fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: dict[str, str] = {}
        """Of each element with an id."""
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
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name:
                self.texts[name] = self.texts.get(name, "") + data
        self.texts[""] = self.texts.get("", "") + data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def section(self, name: str) -> str:
        """Its text, with single spaces."""
        return " ".join(self.texts[name].split())


def rendered() -> str:
    """The page of the current folder."""
    return render(content(load_params()))


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> Page:
    """The page of the files in Git."""
    monkeypatch.chdir(ROOT)
    return Page(rendered())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four classes of 9 x 12 images, results of all kinds, no Git; the current folder."""
    folder = copy_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    write_results(NAMES)
    return folder


def write_results(names: list[str], text: str = "Zen") -> None:
    """Every file that the report reads; `text` stands wherever a file holds free text."""
    generator = np.random.default_rng(0)
    labels = [names[i % len(names)] for i in range(40)]
    said = [names[(i + (i % 13 == 5)) % len(names)] for i in range(40)]
    rows = [
        f"{i},{quoted(a)},{quoted(b)}\n" for i, (a, b) in enumerate(zip(labels, said, strict=True))
    ]
    write_file("plots/predictions.csv", "index,label,predicted\n" + "".join(rows))
    correct = sum(a == b for a, b in zip(labels, said, strict=True))
    rates = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 10}
    write_json(
        Path("metrics/eval.json"),
        {
            "accuracy": correct / 40,
            "correct": correct,
            "n_test": 40,
            "nll": 0.123,
            "ece": 0.045,
            "parity": {"max_abs_logit_diff": 1e-6, "prediction_mismatches": 0},
            "per_class": dict.fromkeys(names, rates),
            "model": {"parameters": 12345, "file_bytes": 67890},
            "robustness": {"shift": {"5": 0.8, "10": 0.6}, text: {"1": 0.5}, "blur": {}},
        },
    )
    val = {"accuracy": 0.9, "loss": 0.3, "best_accuracy": 0.95, "best_epoch": 2}
    train = {"accuracy": 0.9, "loss": 0.4}
    write_json(
        Path("metrics/train.json"), {"val": val, "train": train, "epochs": 3, "parameters": 12345}
    )
    keys = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy")
    points = [(1, 0.01, 1.4, 0.3, 1.2, 0.4), (2, 0.02, 0.8, 0.7, 0.7, 0.95), (3, 0, 0.4, 1, 0.3, 1)]
    write_json(Path("plots/curves.json"), [dict(zip(keys, point, strict=True)) for point in points])
    us = {"engine": {"b1": 10.0, "b100": 8.0}, "pytorch_eager": {"b1": 400.0, "b100": 100.0}}
    write_json(
        Path("metrics/benchmark.json"),
        {"us_per_image": us, "load_us": 50.0, "binary_bytes": 1, "threads": 2, "cpu": text},
    )
    write_series(text)
    write_benchmarks(text)
    image = np.zeros((9, 12), np.uint8)
    for name in ("misclassified", "reliability"):
        Image.fromarray(image).save(f"plots/{name}.png")
    write_idx(
        Path("data/prepared/test-images.idx"), generator.integers(0, 255, (40, 9, 12), np.uint8)
    )
    counts = {part: {"n": n, "per_class": []} for part, n in (("train", 160), ("test", 40))}
    info = {"height": 9, "width": 12, "n_classes": len(names), "splits": counts}
    write_json(Path("data/prepared/info.json"), info)
    write_file("artifacts/tracking_key.txt", content_key(load_params()) + "\n")
    write_lock()


def write_series(text: str) -> None:
    """Results of make seeds and make study."""
    one = {"seed": 0, "key": "0", "test_accuracy": 0.9, "params": 12}
    two = {"seed": 7, "key": "1", "test_accuracy": 0.8, "params": 12}
    write_json(
        Path("metrics/seeds.json"),
        {
            text: {
                "params": 12,
                "test_accuracy": [0.9, 0.8],
                "mean": 0.85,
                "std": 0.0707,
                "trainings": [one, two],
            },
            "tiny": {
                "params": 21,
                "test_accuracy": [0.7],
                "mean": 0.7,
                "std": None,
                "trainings": [{**two, "test_accuracy": 0.7}],
            },
        },
    )
    runs = {
        name: {
            "changes": {"model.d_state": text},
            "parameters": 10,
            "val_accuracy": {"mean": accuracy, "std": None},
            "val_loss": {"mean": 0.1, "std": 0.02},
            "trainings": [{"seed": 0}],
        }
        for name, accuracy in (("base", 0.9), (text, 0.8), ("best", 0.95), ("dear", 0.85))
    }
    speeds = {"base": 100, text: 50, "best": 200, "dear": 300}
    write_json(Path("metrics/study.json"), {"params": {"train.epochs": 5}, "runs": runs})
    us = {name: {"b1": 2.0 * value, "b100": value} for name, value in speeds.items()}
    write_json(Path("metrics/study_speed.json"), {"us_per_image": us, "cpu": text})


def write_benchmarks(text: str) -> None:
    """Results of make bench-engine and make bench-train."""
    us = {"engine": {"b1": 20.0, "b1000": 9.0}, "onnxruntime": {"b1": 820.0, "b1000": 90.0}}
    us["engine"]["b100"], us["onnxruntime"]["b100"] = 15.0, 155.0
    unfinished = {text: text}
    write_json(
        Path("metrics/bench_engine.json"),
        {
            "us_per_image": us,
            "did_not_finish": unfinished,
            "free_a": us,
            "free_a_did_not_finish": {},
            "max_logit_difference": 1e-7,
            "load_us": 30.0,
            "isa": text,
            "binary_kb": 60.0,
            "peak_rss_kb": 2048,
            "threads": 2,
            "git": text,
            "cpu": text,
        },
    )
    step = {"ours": 5.0, "reference": 60.0, text: 1000.0}
    write_json(
        Path("metrics/bench_train.json"),
        {
            "length": 49,
            "step_ms": step,
            "did_not_finish": {},
            "batch": 128,
            "long": {"length": 784, "step_ms": {"ours": 7.0}, "did_not_finish": unfinished},
            "threads": 2,
            "torch": text,
            "git": text,
            "cpu": text,
        },
    )


def write_lock(**more: Any) -> None:
    """dvc.lock of the files as they are."""
    made = [
        path
        for pattern in ("data/prepared/*", "metrics/eval.json", "metrics/train.json", "plots/*")
        for path in sorted(Path().glob(pattern))
    ]
    outs = [
        {"path": str(path), "md5": file_md5(path), "size": path.stat().st_size, "hash": "md5"}
        for path in made
    ]
    model = {"path": "artifacts/mnist_mamba.bin", "md5": "0123456789abcdef" * 2, "size": 67890}
    stages = {"all": {"cmd": "true", "outs": outs}, "export": {"outs": [{**model, **more}]}}
    write_file("dvc.lock", yaml.safe_dump({"schema": "2.0", "stages": stages}))


def write_file(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def change(path: str, edit: Callable[[Any], object]) -> None:
    """Edit a JSON file in place."""
    value = json.loads(Path(path).read_text())
    edit(value)
    write_json(Path(path), value)


def metrics(name: str) -> Any:
    return json.loads((ROOT / "metrics" / f"{name}.json").read_text())


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "plots/predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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
            if tag == "a" and target.startswith("#"):
                assert target[1:] in ids, target
            else:
                assert target.startswith("data:"), (tag, target)
        assert "url(" not in attributes.get("style", "")
    style = re.sub(r"/\*.*?\*/", "", (ROOT / "pipeline/report/style.css").read_text())
    assert not re.search(r"url\(|@import|@font-face", style)
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(chart["aria-label"].strip() and chart["role"] == "img" for chart in page.all("svg"))


def test_the_committed_page_is_self_contained(committed: Page) -> None:
    check_self_contained(committed)
    assert len(committed.all("svg")) >= 3
    assert len(committed.all("table")) > 10


def test_the_headline_is_what_the_files_say(committed: Page) -> None:
    scores = metrics("eval")
    assert committed.texts["accuracy"] == f"{100 * scores['accuracy']:.2f}%"
    us = metrics("benchmark")["us_per_image"]["engine"]["b1"]
    assert committed.texts["us"] == f"{round(us):,} µs"
    assert committed.texts["size"] == f"{round(scores['model']['file_bytes'] / 1000):,} kB"
    assert committed.texts["mismatches"] == str(scores["parity"]["prediction_mismatches"])
    text = " ".join(committed.texts[""].split())
    assert f"{scores['correct']:,} of {scores['n_test']:,} test images" in text
    assert f"{scores['model']['parameters']:,} parameters" in text


def test_sections_show_the_figures_of_their_files(committed: Page) -> None:
    engine = metrics("bench_engine")
    latency = committed.section("latency")
    for load, us in engine["us_per_image"]["onnxruntime"].items():
        ratio = us / engine["us_per_image"]["engine"][load]
        assert f"ONNX Runtime {us:,.0f} {ratio:.1f}{TIMES}" in latency
    train = metrics("bench_train")
    assert f"mambapy {train['step_ms']['mambapy']:,.0f} " in committed.section("training-speed")
    for run in metrics("seeds").values():
        for value in (run["mean"], *run["test_accuracy"]):
            assert f"{100 * value:.2f}%" in committed.section("seeds")
    for row in metrics("eval")["robustness"].values():
        for strength, accuracy in row.items():
            assert f"{strength} {100 * accuracy:.1f}%" in committed.section("robustness")


def test_mistakes_and_confusion_are_those_of_the_predictions(committed: Page) -> None:
    rows = predictions(ROOT)
    counts = Counter((row["label"], row["predicted"]) for row in rows)
    wrong = {pair: n for pair, n in counts.items() if pair[0] != pair[1]}
    assert committed.section("mistakes").startswith(f"{sum(wrong.values())} mistakes")
    (most, n) = max(wrong.items(), key=lambda item: item[1])
    assert f"{most[0]} read as {most[1]} ({n}{TIMES})" in committed.section("confusion")
    assert f"{len(wrong)} pairs" in committed.section("confusion")
    shaded = [a for a in committed.all("td") if a.get("class") == "shade"]
    assert len(shaded) == len(wrong)


def test_lineage_is_that_of_the_lock_and_of_git(committed: Page) -> None:
    lineage = committed.section("lineage")
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    for stage in stages.values():
        for out in stage["outs"]:
            assert out["md5"] in lineage
    git = ["git", "rev-parse", "HEAD"]
    assert subprocess.run(git, capture_output=True, text=True).stdout.strip() in lineage
    assert f"d_model: {load_params().model.d_model}" in lineage
    torch = re.search(r"^torch==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch is not None
    assert f"torch {torch[1]}," in lineage


def test_other_data_has_its_own_classes_and_sizes(project: Path) -> None:
    text = rendered()
    page = Page(text)
    check_self_contained(page)
    assert f"4 classes, 9 {TIMES} 12 pixels" in " ".join(page.texts[""].split())
    scores = json.loads(Path("metrics/eval.json").read_text())
    assert page.texts["accuracy"] == f"{100 * scores['accuracy']:.2f}%" != "100.00%"
    headers = [a for a in page.all("th") if a.get("scope") == "row"]
    assert len(headers) > len(NAMES)
    assert "bee read as cow" in page.section("confusion")
    assert (
        "seed Zen tiny 0 90.00% 7 80.00% 70.00% mean 85.00% 70.00% deviation 7.07% parameters"
        in page.section("seeds")
    )
    assert "none: this is no Git repository" in page.section("lineage")
    assert 'class="doubt"' not in text
    assert text == rendered()


def test_mistakes_are_drawn_from_the_data(project: Path) -> None:
    page = Page(rendered())
    rows = predictions(project)
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    pictures = [a for a in page.all("img") if a["alt"].startswith("test image")]
    assert len(pictures) == len(wrong) == 3
    raw = Path("data/prepared/test-images.idx").read_bytes()[16:]
    for picture in pictures:
        index = int(picture["alt"].split()[2].rstrip(","))
        assert f"a {rows[index]['label']}" in picture["alt"]
        png = Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2])))
        assert (png.size, png.mode) == ((12, 9), "LA")
        assert png.getchannel("A").tobytes() == raw[108 * index : 108 * (index + 1)]


def test_pictures_come_from_the_plot_where_the_data_is_another_or_not_here(project: Path) -> None:
    data = Path("data/prepared/test-images.idx")
    write_idx(data, np.zeros((40, 9, 12), np.uint8))
    plot = base64.b64encode(Path("plots/misclassified.png").read_bytes()).decode()
    for present in (True, False):
        if not present:
            data.unlink()
        page = Page(rendered())
        assert not [a for a in page.all("img") if a["alt"].startswith("test image")]
        assert plot in [a["src"].partition(",")[2] for a in page.all("img")]
    Path("plots/misclassified.png").unlink()
    assert "make repro writes plots/misclassified.png" in Page(rendered()).section("mistakes")


def test_a_model_without_mistakes(project: Path) -> None:
    rows = [f"{i},{NAMES[i % 4]},{NAMES[i % 4]}\n" for i in range(40)]
    write_file("plots/predictions.csv", "index,label,predicted\n" + "".join(rows))
    change("metrics/eval.json", lambda value: value.update(correct=40, accuracy=1.0))
    page = Page(rendered())
    check_self_contained(page)
    assert "Every test image is read right" in page.section("mistakes")
    assert page.texts["accuracy"] == "100.00%"
    assert "91.24% to 100.00%" in page.texts[""]


def test_many_mistakes_are_thinned_out_over_all_classes(project: Path) -> None:
    wrong = [{"index": i % 40, "label": NAMES[i // 50], "said": "x"} for i in range(200)]
    shown = results.tiles(wrong, file_md5(Path("data/prepared/test-images.idx")))
    assert shown is not None
    assert len(shown["images"]) == results.MAX_MISCLASSIFIED
    assert {tile["label"] for tile in shown["images"]} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "section", "command"),
    [
        ("seeds", "seeds", "make seeds"),
        ("study", "study", "make study"),
        ("study_speed", "study", "make study"),
        ("benchmark", "latency", "dvc repro -sf benchmark"),
        ("bench_engine", "latency", "make bench-engine"),
        ("bench_train", "training-speed", "make bench-train"),
    ],
)
def test_a_file_that_is_not_there_yet_is_a_command(
    project: Path, name: str, section: str, command: str
) -> None:
    said = f"{command} writes metrics/{name}.json"
    assert said not in Page(rendered()).section(section)
    Path(f"metrics/{name}.json").unlink()
    page = Page(rendered())
    check_self_contained(page)
    assert said in page.section(section)


def test_a_series_says_what_it_lacks(project: Path) -> None:
    series = yaml.safe_load(Path("pipeline/series/series.yaml").read_text())["seeds"]
    total = len(series["seeds"]) * len(series["runs"])
    assert f"1 of {total} trainings are done, none of " in Page(rendered()).section("seeds")
    one = {"seed": 1, "key": "2", "test_accuracy": 0.7, "params": 12}
    run = {"params": 1, "test_accuracy": [0.7], "mean": 0.7, "std": 0.1}
    trainings = [{**one, "seed": seed} for seed in series["seeds"]]
    whole = {name: {**run, "trainings": trainings} for name in series["runs"]}
    write_json(Path("metrics/seeds.json"), whole)
    assert "trainings are done" not in Page(rendered()).section("seeds")


def test_without_validation_there_are_curves_of_training(project: Path) -> None:
    def forget(points: list[dict[str, Any]]) -> None:
        for point in points:
            point["val_loss"] = point["val_accuracy"] = None

    change("plots/curves.json", forget)
    change("metrics/train.json", lambda value: value.pop("val"))
    page = Page(rendered())
    check_self_contained(page)
    assert "none were set aside" in page.section("training")
    assert "validation error" not in page.section("training")


def test_nothing_in_the_files_becomes_markup(project: Path) -> None:
    plain = Page(rendered())
    write_results([*NAMES[:3], HOSTILE], HOSTILE)
    page = Page(rendered())
    check_self_contained(page)
    assert Counter(tag for tag, _ in page.elements) == Counter(tag for tag, _ in plain.elements)
    for section in ("confusion", "robustness", "seeds", "study", "latency", "training-speed"):
        assert HOSTILE in page.section(section), section
    assert HOSTILE in page.section("lineage")


@pytest.mark.parametrize("source", REQUIRED, ids=lambda source: source.path.name)
def test_a_required_file_that_is_missing_is_an_error(project: Path, source: Any) -> None:
    source.path.unlink()
    with pytest.raises(ReportError, match=rf"^{source.path} is missing: `make repro` makes it$"):
        rendered()


def test_all_that_is_missing_is_told_at_once(project: Path) -> None:
    for source in REQUIRED:
        source.path.unlink()
    done = run_module(project, "pipeline.report")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert all(f"{source.path} is missing" in done.stderr for source in REQUIRED)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "path", ["metrics/eval.json", "metrics/seeds.json", "plots/curves.json", "dvc.lock"]
)
@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[]", '["a"]', '"a"', "3"])
def test_a_damaged_file_is_an_error_that_names_it(project: Path, path: str, text: str) -> None:
    Path(path).write_text(text)
    with pytest.raises(ReportError, match=f"^{path} (cannot be read|is not as)"):
        rendered()


def test_predictions_of_another_run_are_an_error(project: Path) -> None:
    change("metrics/eval.json", lambda value: value.update(correct=36))
    with pytest.raises(ReportError, match=r"has 37 of 40 right, metrics/eval.json 36 of 40"):
        rendered()


def test_results_that_do_not_belong_together_are_doubted(project: Path) -> None:
    change("metrics/train.json", lambda value: value.update(epochs=4))
    page = rendered()
    assert page.count('class="doubt"') == 1
    assert "Not as dvc.lock has them: metrics/train.json." in page
    params = Path("params.yaml")
    params.write_text(params.read_text().replace("d_state: 4", "d_state: 5"))
    page = rendered()
    assert page.count('class="doubt"') == 2
    assert "Params or sources have changed" in page


def test_the_command_writes_the_page(project: Path) -> None:
    done = run_module(project, "pipeline.report", "--output", "a/b.html")
    assert done.returncode == 0, done.stderr
    assert "a/b.html" in done.stderr
    assert (project / "a/b.html").read_text() == rendered()


def test_ticks_are_round_and_inside() -> None:
    for low, high, log in ((0.4, 27, True), (3.1, 4.8, True), (0.993, 0.9951, False)):
        axis = charts.Axis(low, high, 0, 100, log)
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)
        assert all(len(f"{tick:g}".replace(".", "").strip("0")) <= 4 for tick in ticks)
    assert charts.Axis(1, 100, 0, 10, log=True).at(10) == pytest.approx(5)
    assert charts.Axis(0, 100, 10, 0).at(25) == pytest.approx(7.5)


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [1.0, 0.0], [3e-5, 2.0, 1.0]])
def test_any_values_make_a_chart(values: list[float]) -> None:
    svg = charts.line_chart("label", {"a": values, "b": values}, "{:.2g}".format, "epoch")
    numbers = re.findall(r' (?:c?[xy][12]?|points)="([^"]+)"', svg)
    places = [float(number) for text in numbers for number in re.split("[ ,]", text)]
    assert all(-1 <= place <= charts.WIDTH for place in places)
    # Names that end at the same value do not stand on each other.
    heights = re.findall(r'class="name name-\d" x="[^"]+" y="([^"]+)"', svg)
    assert abs(float(heights[0]) - float(heights[1])) >= 26


def test_unbeaten_are_those_that_nothing_beats() -> None:
    points = {"cheap": (1.0, 0.5), "good": (2.0, 0.9), "dear": (3.0, 0.9), "bad": (2.0, 0.4)}
    assert charts.unbeaten(points) == {"cheap", "good"}
