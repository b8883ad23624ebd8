"""`--best`, and a checkpoint by its path: sample, eval, export and analyze take the same weights."""

import json
import shutil

import pytest
from safetensors import safe_open

from gnfast.cli import main
from gnfast.io.rows import read_rows
from gnfast.metrics import Scores
from gnfast.train import session
from tests.cli.commands import TINY, fails

COMMANDS = ("sample", "eval", "export", "analyze")
EXTRACTOR = "--extractor=tests.kills:pixels"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A finished run of 4 steps, measured at 0, 2 and 4, that is best at 2."""
    folder = tmp_path_factory.mktemp("best") / "run"
    scores = (Scores(distance, "pixels", 9, 9) for distance in (9.0, 5.0, 7.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "evaluate", lambda *_: [next(scores)] * 2)
        words = [*TINY, "--eval-every=2", "--ema-decay=0.5", EXTRACTOR, "--run-dir", str(folder)]
        assert main(["train", "digits", *words]) == 0
    return folder


@pytest.fixture
def run(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def unmeasured(tmp_path):
    assert main(["train", "digits", *TINY, "--extractor=none", "--run-dir", str(tmp_path / "unmeasured")]) == 0
    return tmp_path / "unmeasured"


def test_sample(run, capsys):
    assert main(["sample", str(run), "--best"]) == 0
    best = run / "sample-ema-best.png"
    assert capsys.readouterr().out.strip() == str(best)
    assert main(["sample", str(run)]) == main(["sample", str(run / "checkpoints" / "step-000000002.pt")]) == 0
    assert best.read_bytes() == (run / "sample-ema-step-000000002.png").read_bytes()
    assert best.read_bytes() != (run / "sample-ema.png").read_bytes()


def test_export(run):
    assert main(["export", str(run), "--best", "--raw"]) == 0
    assert main(["export", str(run / "checkpoints" / "best.pt"), "--out", str(run / "G.safetensors")]) == 0
    for name, weights in (("generator-raw-best", "raw"), ("G", "ema")):
        with safe_open(run / f"{name}.safetensors", "pt") as file:
            about = {key: json.loads(value) for key, value in file.metadata().items()}
        assert (about["step"], about["weights"], about["scores"]["distance_ema"]) == (2, weights, 5.0)


def test_eval(run):
    def result(*words):
        assert main(["eval", *words, "--n=30", EXTRACTOR, "--out", str(run / "result.json")]) == 0
        return json.loads((run / "result.json").read_text())

    best, named, newest = (
        result(*words) for words in ([str(run), "--best"], [str(run / "checkpoints/step-000000002.pt")], [str(run)])
    )
    assert (best["step"], named["step"], newest["step"]) == (2, 2, 4)
    assert best["distance"] == named["distance"] != newest["distance"]
    assert (best["checkpoint"], named["checkpoint"]) == ("best", "step-000000002")
    assert "checkpoint" not in newest
    page, rows = (run / "report.html").read_text(), read_rows(run / "evaluations.jsonl")
    assert "Scores by gnfast eval" in page
    assert [row["step"] for row in rows] == [2, 2, 4] and rows[2]["distance"] == newest["distance"]
    # The best and the checkpoint of that step are the same.
    assert [page.count(row["scores"]) for row in rows] == [1, 1, 1]


def test_a_run_that_cannot_be_added_to_is_measured_all_the_same(run, capsys):
    (run / "evaluations.jsonl").mkdir()
    assert main(["eval", str(run), "--n=30", EXTRACTOR]) == 0
    out, said = capsys.readouterr()
    assert "distance" in out and "warning: not added to the run's page: " in said


def test_analyze(run, capsys):
    assert main(["analyze", str(run), "--best", "--what=gradients", "--n=8"]) == 0
    assert "run, step 2" in (run / "analysis-best" / "index.html").read_text()
    path = run / "checkpoints" / "step-000000004.pt"
    assert main(["analyze", str(path), "--what=gradients", "--n=8"]) == 0
    assert "run, step 4" in (run / "analysis-step-000000004" / "index.html").read_text()
    assert "--best needs a run folder" in fails(capsys, "analyze", "--net", "a:b", "--data=digits", "--best")


@pytest.mark.parametrize("command", COMMANDS)
def test_errors_say_why(run, unmeasured, capsys, command):
    line = fails(capsys, command, str(unmeasured), "--best")
    assert "unmeasured has no best checkpoint: nothing was measured while it trained; leave out --best" in line
    best = run / "checkpoints" / "best.pt"
    assert f"--best: got {best}, wanted a run folder" in fails(capsys, command, str(best), "--best")
    missing = best.with_name("step-000000003.pt")
    assert f"{missing}: there is no such checkpoint" in fails(capsys, command, str(missing))
    best.write_bytes(best.read_bytes()[:-100])
    assert f"{best} is damaged" in fails(capsys, command, str(run), "--best")
    best.unlink()
    assert "has no best checkpoint: " in (line := fails(capsys, command, str(run), "--best"))
    assert "best.pt, of step 2, is gone" in line
    (run / "metrics.jsonl").unlink()
    assert "metrics.jsonl has no distance yet" in fails(capsys, command, str(run), "--best")


def test_a_best_checkpoint_of_another_step_than_the_best_distance_is_not_taken_without_a_word(run, capsys):
    with (run / "metrics.jsonl").open("a") as file:
        print(json.dumps({"step": 4, "distance_ema": 1.0}), file=file)
    assert main(["sample", str(run), "--best"]) == 0
    assert "best.pt is of step 2, but metrics.jsonl has the best distance at 4" in capsys.readouterr().err


def test_best_of_what_is_no_run(run, capsys):
    for what in ("digits", str(run / "nothing.npz")):
        assert f"--best: got {what}, wanted a run folder" in fails(capsys, "eval", what, "--best", "--data=digits")
