"""Reports: pages that parse, refer to nothing outside, escape what they are given and bear with missing pieces."""

import base64
import json
import os
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
from PIL import Image

from gnfast.cli import main
from gnfast.config.config import AUTO, as_json
from gnfast.config.presets import PRESETS
from gnfast.io.numbers import number
from gnfast.runs.average import copied, unmoved
from gnfast.runs.comparison_page import write_comparison
from gnfast.runs.curves import BINS, Series, line_chart
from gnfast.runs.published import published
from gnfast.runs.record import beside, best, last, points, read_run, score_names
from gnfast.runs.run_page import SHOTS, duration, write_report
from gnfast.train import Config, RunError
from tests.hostile_files import png
from tests.pages import Page
from tests.tiny_runs import quiet, tiny

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (360, 1280)
INSPECT = """<script>
addEventListener("load", () => {
  const [root, images] = [document.documentElement, [...document.images]];
  parent.postMessage({page: document.title, width: innerWidth, sticks_out: root.scrollWidth - root.clientWidth,
    pictures: images.length, missing: images.filter((image) => !image.naturalWidth).length}, "*");
});
</script>"""
COLLECT = """<!doctype html><script>
addEventListener("message", (event) => {
  document.body.append(Object.assign(document.createElement("pre"), {innerText: JSON.stringify(event.data)}));
});
</script>"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two real tiny runs that differ in a learning rate and the seed."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"steps": 6, "log_every": 2, "sample_every": 2, "n_samples": 4, "eval_every": 3, "n_fake": 20}
    for name, changes in (("one", {}), ("two", {"seed": 1, "lr_d": 5e-3})):
        config = tiny(folder / name, extractor="tests.kills:pixels", **settings, **changes)
        quiet("digits", config)
    return folder


@pytest.fixture
def odd(tmp_path):
    """The folder of a run that was only begun, with names that a careless page would run as code."""
    folder = tmp_path / "a&b <i>"
    folder.mkdir()
    settings = as_json(Config(data="<script>alert(1)</script>", resolution=8)) | {"future": 'a "new" <option>'}
    (folder / "config.json").write_text(json.dumps({"preset": "<b>odd</b>", "config": settings}))
    return folder


def texts(page):
    return " ".join(page.texts)


def test_a_report_tells_the_run(runs):
    path = write_report(runs / "one")
    assert path == runs / "one" / "report.html"
    page = Page(path)
    page.assert_self_contained()
    text = texts(page)
    rows = read_run(runs / "one").rows
    name = min(("distance_ema", "distance_raw"), key=lambda name: best(rows, name)[1])
    step, value = best(rows, name)
    (kernel,) = beside(rows, name).values()
    assert "finished 6 steps" in text
    assert (
        f"Best Fréchet distance {number(value)} " in text
        and f", step {step:,}; kernel distance × 1000 {number(kernel)}; last: " in text
    )
    assert "lower is better; tests.kills:pixels; 1797 real, 20 generated" in text
    assert all(word in text for word in ("Losses", "Learning rate", "--z-dim", "step 4", "python"))
    # Two kinds of weights at steps 2, 4 and 6, each of 4 images of 8 pixels.
    assert [image.size for image in page.pictures()] == [((2 * 9 + 1) * 8,) * 2] * 6


def test_what_was_evaluated_later_is_shown_once_and_odd_rows_are_survived(runs, tmp_path):
    folder = shutil.copytree(runs / "one", tmp_path / "one")
    row = {"step": 1234, "weights": "ema", "scores": "FID 12.3 (9 real / 9 generated images)", "against": "photos"}
    odd = '{"step": 5, "weights": [1], "scores": {"a": 1}, "against": null}'
    (folder / "evaluations.jsonl").write_text("\n".join([json.dumps(row)] * 2 + [odd, '{"step": "x"}', "\0", "[]"]))
    text = texts(Page(write_report(folder)))
    assert text.count("1,234 EMA FID 12.3 (9 real / 9 generated images) photos") == 1
    assert text.count("5 – – –") == 1
    text = texts(Page(write_comparison([folder, runs / "one"])))
    assert len(re.findall(r"one 1,234 EMA FID 12.3 \(9 real / 9 generated images\) photos", text)) == 1


def test_scores_are_called_after_their_extractor(runs, tmp_path):
    path = shutil.copytree(runs / "one", tmp_path / "one") / "metrics.jsonl"
    for name, wanted in (("digits-classifier", "class score (EMA)"), ("inception", "Inception score (EMA)")):
        row = {"step": 6, "is_ema": 2.5, "extractor": name}
        path.write_text(json.dumps(row) + "\n")
        text = texts(Page(write_report(tmp_path / "one")))
        assert f"Best {wanted.partition(' (')[0]} 2.5 EMA, step 6" in text and f"by {name}" in text
        text = texts(Page(write_comparison([tmp_path / "one", tmp_path / "one"])))
        assert f"best {wanted}" in text
    assert "class score" not in text


def test_settings_that_differ_from_the_preset_are_marked_with_its_value(runs):
    page = Page(write_report(runs / "two"))
    cells = texts(page).split()
    at = cells.index("--lr-d")
    assert cells[at : at + 3] == ["--lr-d", "0.005", "0.001"]
    assert ("tr", {"class": "changed"}) in page.elements


def test_an_extractor_in_place_of_auto_is_not_called_a_change(odd):
    name = next(name for name, preset in PRESETS.items() if preset.config.extractor == AUTO)
    settings = as_json(PRESETS[name].config) | {"extractor": "none"}
    (odd / "config.json").write_text(json.dumps({"preset": name, "config": settings}))
    text = texts(Page(write_report(odd)))
    assert "differs from the preset" not in text and "--extractor none chosen at its start, or given" in text
    # One that was typed is, and the command can be typed again.
    session = [{"command": ["gnfast", "train", name, "--extractor=none", "--data", "my pictures"]}]
    (odd / "environment.json").write_text(json.dumps(session))
    text = texts(Page(write_report(odd)))
    assert f"gnfast train {name} --extractor=none --data 'my pictures'" in text
    assert "differs from the preset" in text and "chosen at its start" not in text


def test_what_the_paper_reports_stands_beside_and_what_the_run_has_changed(odd):
    name = "gngan-cifar10-resnet"
    preset = PRESETS[name]
    own = as_json(preset.config) | {"run_dir": "elsewhere", "n_fake": 7, "seed": 4}
    assert published(name, own) == preset.reported != ""
    assert published(name, own | {"width": 0.5}) == f"{preset.reported}; this run differs in --width"
    # A run of before there was a setting had its default.
    assert published(name, {key: value for key, value in own.items() if key != "n_dis"}).endswith("in --n-dis")
    changed = {"width": 0.5, "resolution": 8, "channels": 1, "flip": False, "steps": 3, "loss": "minimax"}
    line = published(name, own | changed)
    assert line.endswith("; this run differs in --resolution, --channels, --flip, --width and 2 more")
    assert published("digits", own) == published("nothing", own) == ""
    (odd / "config.json").write_text(json.dumps({"preset": name, "config": own | changed}))
    page = Page(write_report(odd))
    assert f"published: {line}" in page.texts and page.texts[2:4] == [name, preset.summary]


@pytest.mark.parametrize(
    ("data", "called"),
    [
        ("digits", "digits"),
        ("/home/me/birds", "birds"),
        ("birds.v2.zip", "birds.v2"),
        ("birds.parquet", "birds"),
        ("", "images from Python"),
    ],
)
def test_a_run_on_other_images_than_the_presets_is_called_after_them(odd, data, called):
    """The paper's scores are of the paper's images: they are left out, with the reason."""
    name = "gngan-cifar10-resnet"
    own = as_json(PRESETS[name].config)
    (odd / "config.json").write_text(json.dumps({"preset": name, "config": own | {"data": data}}))
    page = Page(write_report(odd))
    assert page.texts[1:4] == [f"{called}: step 0 of 200,000", called, f"recipe: {name} ({PRESETS[name].summary})"]
    line = f"none for {called}: the scores of {name} are of cifar10"
    assert f"published: {line}" in page.texts and PRESETS[name].reported not in texts(page)
    # Those that it is measured against count as well.
    assert published(name, own, data) == line


@pytest.mark.parametrize("data", ["/data/cifar10", "cifar10.zip", "/data/cifar-10-python.tar.gz"])
def test_the_presets_images_may_lie_anywhere(data):
    name = "gngan-cifar10-resnet"
    own = as_json(PRESETS[name].config) | {"data": data}
    assert published(name, own) == f"{PRESETS[name].reported}; this run differs in --data"


@pytest.mark.parametrize(
    ("step", "changes", "wanted"),
    [
        (20, {}, "--ema-decay 0.9999) is still 99.8 % the weights of step 0"),
        (3, {}, "--ema-decay 0.9999) is still 99.9 % the weights of step 0"),
        (23_024, {}, "--ema-decay 0.9999) is still 10.0 % the weights of step 0"),
        (23_025, {}, ""),
        (0, {}, ""),
        (20, {"ema_decay": 0.0}, ""),
        (20, {"ema_decay": 0.5}, ""),
        # A copy until step 99; what is of the second half of a run has been trained.
        (100, {"ema_start": 100}, ""),
        (198, {"ema_start": 100, "ema_decay": 0.98}, "--ema-decay 0.98) is still 13.5 % the weights of step 99"),
        (213, {"ema_start": 100, "ema_decay": 0.98}, ""),
        (20, {"ema_decay": [1], "ema_start": "x"}, ""),
    ],
)
def test_an_average_that_is_still_its_first_weights_is_said_to_be(odd, step, changes, wanted):
    own = as_json(PRESETS["gngan-cifar10-resnet"].config) | changes
    line = f"after step {step:,} the moving average ({wanted}" if wanted else ""
    assert unmoved(own, step) == line
    (odd / "config.json").write_text(json.dumps({"preset": "gngan-cifar10-resnet", "config": own}))
    (odd / "metrics.jsonl").write_text(json.dumps({"step": step, "loss_real": 1.0}) + "\n")
    text = texts(Page(write_report(odd)))
    assert "raw: the generator itself." in text and ("Here, after step" in text and "by --raw." in text) == bool(wanted)
    assert line in text


def test_an_average_that_has_not_begun_is_said_to_be_the_generator(odd):
    line = "until step 100 (--ema-start) the moving average is the generator itself"
    for step, wanted in ((1, line), (99, line), (100, ""), (0, "")):
        assert copied({"ema_start": 100}, step) == wanted
    own = as_json(PRESETS["gngan-cifar10-resnet"].config) | {"ema_start": 100}
    assert unmoved(own, 99) == copied(own | {"ema_start": "x"}, 99) == ""
    (odd / "config.json").write_text(json.dumps({"preset": "gngan-cifar10-resnet", "config": own}))
    scores = ({"step": step, "distance_ema": ema, "distance_raw": 100 - step} for step, ema in ((90, 2.0), (99, 3.0)))
    (odd / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    text = texts(Page(write_report(odd)))
    # The best of both weights, and the step whose checkpoint is kept as the best, which goes by the average.
    assert f"Here, {line}." in text and "raw, step 99; --best takes EMA, step 90" in text


def test_odd_names_are_escaped(odd):
    page = Page(write_report(odd))
    page.assert_self_contained()
    assert "<script>alert(1)</script>" in texts(page) and "<b>odd</b>" in texts(page)
    assert '"new" <option>' in texts(page) and "a&b <i>" in texts(page)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 1
    assert not any(tag in ("i", "option") for tag, _ in page.elements)


def test_missing_and_damaged_pieces_are_left_out(odd):
    Page(write_report(odd))
    (odd / "environment.json").write_text("[{")
    (odd / "metrics.jsonl").write_text(
        '{"step": 1, "loss_real": NaN}\n[]\n{"step": 2, "loss_real": 1.0}\n{"step": 3, "lo\x00'
    )
    (odd / "speed.jsonl").write_text('{"step": 1}\n{"step": 2, "seconds": 3.0, "steps_per_second": 5}\n')
    (odd / "log.txt").write_bytes(b"\xff\xfe not text <p>\n")
    (odd / "samples").mkdir()
    (odd / "samples" / "ema-000002.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (odd / "samples" / "notes.txt").write_text("")
    page = Page(write_report(odd))
    page.assert_self_contained()
    assert "step 2 of 200,000" in texts(page)
    assert "3.0 s" in texts(page)
    assert not page.pictures()


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        write_report(tmp_path)
    with pytest.raises(RunError, match="nothing: no such file or folder"):
        write_report(tmp_path / "nothing")


def test_a_link_that_lies_there_is_not_followed(odd, tmp_path):
    outside = tmp_path / "outside.html"
    outside.write_text("mine")
    for name in ("report.html", "report.html.partial"):
        (odd / name).symlink_to(outside)
    assert not write_report(odd).is_symlink()
    assert outside.read_text() == "mine"


def test_pictures_that_no_run_makes_are_left_out(odd):
    folder = odd / "samples"
    folder.mkdir()
    (folder / "ema-000001.png").write_bytes(png(60_000, 60_000))
    (folder / "ema-000002.png").write_bytes(png(9_000, 9_000))
    (folder / "ema-000003.png").symlink_to("/dev/zero")
    (folder / "ema-000004.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    os.mkfifo(folder / "ema-000005.png")
    assert not Page(write_report(odd)).pictures()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"config\.json is damaged: not JSON"),
        (b"\xff\xfe\xff", r"config\.json is damaged: not JSON"),
        (b"[" * 100_000, r"config\.json is damaged: not JSON"),
        (b"[1]", r"config\.json is not one of a run"),
        (None, r"config\.json: a named pipe, wanted a regular file"),
    ],
)
def test_settings_that_cannot_be_read_are_named(odd, content, message):
    path = odd / "config.json"
    path.unlink()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(RunError, match=message):
        write_report(odd)


def test_many_large_pictures_stay_small(odd):
    folder = odd / "samples"
    folder.mkdir()
    noise = Image.effect_noise((1100, 1100), 100).convert("RGB")
    for step in range(30):
        noise.save(folder / f"ema-{step:06d}.png", compress_level=0)
    path = write_report(odd)
    page = Page(path)
    captions = [text for text in page.texts if text.startswith("step ") and " of " not in text]
    assert len(page.pictures()) == SHOTS == len(captions)
    assert (captions[0], captions[-1]) == ("step 0", "step 29")
    assert path.stat().st_size < 8_000_000
    assert max(page.pictures()[0].size) >= 400


def test_a_stopped_run_says_by_what(odd):
    (odd / "metrics.jsonl").write_text('{"step": 5, "loss_real": 1}\n')
    (odd / "log.txt").write_text("2026-01-01 10:00:00 stopped after step 5 by SIGTERM; saved x; repeat\n")
    assert read_run(odd).status == "stopped at step 5 of 200,000 by SIGTERM"


def test_time_adds_the_sessions(odd):
    rows = [(1, 10.0), (2, 20.0), (3, 4.0), (4, 8.0)]
    (odd / "speed.jsonl").write_text(
        "".join(json.dumps({"step": s, "seconds": t, "steps_per_second": 1}) + "\n" for s, t in rows)
    )
    assert read_run(odd).seconds == 28.0
    assert [duration(s) for s in (None, 4.25, 75, 3725)] == ["–", "4.2 s", "1 min 15 s", "1 h 02 min"]


def test_scores_are_found_by_name_and_ranked_by_kind():
    rows = [
        {"step": 1, "distance_ema": 3.0, "is_ema": 7.0, "is_std_ema": 0.1, "loss_real": 1.0, "kid_raw": float("nan")},
        {"step": 2, "distance_ema": 2.0, "is_ema": 6.0, "extractor": "x"},
        {"step": 3, "distance_ema": 2.0, "is_ema": None},
    ]
    assert score_names(rows) == ["distance_ema", "is_ema", "kid_raw"]
    assert (best(rows, "distance_ema"), best(rows, "is_ema"), best(rows, "kid_raw")) == ((2, 2.0), (1, 7.0), None)
    assert (last(rows, "is_ema"), points(rows, "kid_raw")) == ((2, 6.0), [])
    assert beside(rows, "distance_ema") == {"is_ema": 6.0} and beside(rows, "is_ema") == {"distance_ema": 3.0}
    assert beside(rows, "distance_raw") == beside(rows, "loss_real") == beside([], "distance_ema") == {}


def test_a_comparison_overlays_runs_and_lists_what_differs(runs, capsys, monkeypatch):
    assert main(["report", str(runs / "one"), str(runs / "two")]) == 0
    path = runs / "comparison.html"
    assert capsys.readouterr().out.strip() == str(path)
    monkeypatch.chdir(runs)
    assert main(["report", "one", "two"]) == 0
    assert capsys.readouterr().out.strip() == "comparison.html"
    page = Page(path)
    page.assert_self_contained()
    cells = texts(page).split("Settings that differ ")[1].split()
    for option, a, b in (("--lr-d", "0.0002", "0.005"), ("--seed", "0", "1")):
        at = cells.index(option)
        assert cells[at + 1 : at + 3] == [a, b]
    assert "--z-dim" not in cells and "--run-dir" not in cells
    assert len(page.pictures()) == 2
    # The average of six steps would show the first weights.
    assert page.texts.count("step 6, raw") == 2
    assert texts(page).count("two") >= 5
    # Columns of the first table: beside the best distance, the kernel distance at the same step.
    heads = ["best Fréchet distance (EMA)", "kernel distance × 1000 (EMA) there", "last Fréchet distance (EMA)"]
    place = page.texts.index(heads[0])
    assert page.texts[place : place + 3] == heads
    there = beside(read_run(runs / "one").rows, "distance_ema")["kid_ema"]
    at = page.texts.index("one", place)
    assert number(there) in page.texts[at : at + 5]


def test_the_command_takes_a_run_and_a_file(runs, tmp_path, capsys):
    assert main(["report", str(runs / "one"), "--out", str(tmp_path / "new" / "one.html")]) == 0
    Page(tmp_path / "new" / "one.html").assert_self_contained()
    capsys.readouterr()
    for words, message in (([], "which run?"), ([str(tmp_path)], "not a run folder")):
        assert main(["report", *words]) == 2
        assert message in capsys.readouterr().err


def test_scores_of_different_measures_are_not_compared_without_a_word(runs, tmp_path):
    folders = [shutil.copytree(runs / "one", tmp_path / name) for name in ("a", "b")]
    alike = Page(write_comparison(folders))
    assert "Not comparable" not in texts(alike) and "Measured by tests.kills:pixels; " in texts(alike)
    assert "b lies on a" in texts(alike)
    row = {"step": 6, "distance_ema": 0.5, "extractor": "pixels-8x8", "n_real": 9, "n_fake": 7}
    (folders[1] / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    text = texts(Page(write_comparison(folders)))
    assert "Not comparable: they were measured with different extractors or numbers of images. a: tests.kills:" in text
    assert "; b: pixels-8x8; 9 real, 7 generated." in text
    # Nor drawn on one axis.
    assert "Loss: critic, real" in text and text.count("Fréchet distance (EMA)") == 2


def test_a_comparison_of_odd_names_is_escaped(odd, tmp_path):
    other = tmp_path / "plain"
    other.mkdir()
    (other / "config.json").write_bytes((odd / "config.json").read_bytes())
    page = Page(write_comparison([odd, other]))
    page.assert_self_contained()
    assert "a&b <i>" in texts(page)


def drawn(*series, **options):
    """The points of each curve and each band of a chart, by its number: `curve-0`; y grows downwards."""
    html = line_chart("y", [Series("a", points) for points in series], **options)
    svg = ElementTree.fromstring(base64.b64decode(html.partition("base64,")[2].partition('"')[0]))
    found = {}
    for group in svg.findall(".//{*}g"):
        name = group.get("id", "")
        if name.startswith(("curve", "band")):
            path = group.find(".//{*}path").get("d")
            found[name] = [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path)]
    return found


def test_a_curve_is_drawn_to_scale():
    (x0, y0), (x1, y1), (x2, y2) = drawn([(0, 0.0), (5, 5.0), (10, 10.0)])["curve-0"]
    assert x0 < x1 < x2 and y0 > y1 > y2
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    curve = drawn([(0, 1.0), (5, 10.0), (10, 100.0)], log=True)["curve-0"]
    assert curve[0][1] - curve[1][1] == pytest.approx(curve[1][1] - curve[2][1], abs=0.2)


def test_long_curves_become_means_on_a_band():
    found = drawn([(x, x % 2) for x in range(10_000)], [(0, 0.0), (9, 1.0)])
    assert found.keys() == {"curve-0", "band-0", "curve-1"}
    assert len(found["curve-0"]) <= BINS
    assert len({y for _, y in found["curve-0"]}) == 1 and len({y for _, y in found["band-0"]}) == 2


def test_short_curves_show_their_values_and_the_same_chart_is_the_same_bytes():
    series = [Series("$a$ <b>", [(0, 0.125), (1000, 2.0)]), Series("c", [(0, 1.0)])]
    chart = line_chart("$y", series, note="how")
    cells = re.findall('<t[dh](?: class="short")?>(.*?)</t[dh]>', chart)
    assert cells == ["step", "$a$ &lt;b&gt;", "c", "0", "0.125", "1", "1,000", "2", ""]
    assert line_chart("$y", series, note="how") == chart


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [[0.0], [3.0, 3.0], [-1e-9, 1e9], [-5.0, -4.0], [1e-30, 2e-30], [0.0, 5e-324], [-1e99, 1e99], [5e-324, 1.0]],
)
def test_any_values_can_be_drawn(values, log):
    ((name, curve),) = drawn(list(enumerate(values)), log=log).items()
    assert name == "curve-0" and len(curve) == len(values)
    assert all(-1 <= x <= 410 and -1 <= y <= 170 for x, y in curve)


def ticks(*points):
    """The numbers at the axes of a chart of one curve."""
    html = line_chart("y", [Series("a", points)])
    svg = ElementTree.fromstring(base64.b64decode(html.partition("base64,")[2].partition('"')[0]))
    return [text.text for text in svg.findall(".//{*}text")]


def test_ticks_are_round_numbers_of_values_that_there_are():
    assert ticks((10, 2e-4), (60, 2e-4)) == ["10", "20", "30", "40", "50", "60", "0.0002"]
    assert ticks((0, 0.0), (1, 4e15))[-1] == "4e15" and "20000" in ticks((0, 0.0), (1, 4e4))
    assert "1.762e7" in ticks((0, 17_610_000.0), (1, 17_640_000.0))
    # As many digits as tell them apart.
    assert {"15.97512", "15.97514"} <= set(ticks((0, 15.9751), (1, 15.9752)))
    assert "15.975175" in ticks((0, 15.975125), (1, 15.975275))


def test_rates_that_are_the_same_are_one_curve(odd):
    for critic, wanted in ((1e-4, "both"), (4e-4, "critic")):
        (odd / "metrics.jsonl").write_text(json.dumps({"step": 2, "lr_d": critic, "lr_g": 1e-4}) + "\n")
        page = Page(write_report(odd))
        assert page.texts[page.texts.index("Learning rate") + 1] == wanted


def test_nothing_is_drawn_of_no_points():
    assert line_chart("y", [Series("a", [])]) == ""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_pages_fit_a_phone_and_a_screen(runs, tmp_path):
    """All that they show is there, nothing sticks out, and the console is silent."""
    pages = [write_report(runs / "one", tmp_path / "one.html")]
    pages += [write_comparison([runs / "one", runs / "two"], tmp_path / "both.html")]
    frames = []
    for page in pages:
        page.write_text(page.read_text() + INSPECT)
        frames += [f'<iframe src="{page.as_uri()}" width="{width}" height="600" frameborder="0">' for width in WIDTHS]
    (tmp_path / "all.html").write_text(COLLECT + "</iframe>".join([*frames, ""]))
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path / 'own'}", "--virtual-time-budget=5000", "--dump-dom"]
    words += [(tmp_path / "all.html").as_uri()]
    ran = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120)
    found = [json.loads(text.replace("&amp;", "&")) for text in re.findall("<pre>(.*?)</pre>", ran.stdout)]
    assert sorted(one["width"] for one in found) == sorted(WIDTHS * len(pages)), ran.stderr[-2000:]
    for one in found:
        assert one["pictures"] > 3 and (one["sticks_out"], one["missing"]) == (0, 0), one
    assert "CONSOLE" not in ran.stderr
