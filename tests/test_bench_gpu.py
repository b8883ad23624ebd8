"""`make gpu` where there is no GPU: every section runs on the CPU with tiny sizes, and failures stay where they are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"

# Plays the process that runs the sections: a hangs, b breaks the device, c ends without a word, d works.
ACTOR = """
import json, sys, time
job = json.loads(sys.argv[1])
def tell(kind, **message):
    print("@message " + json.dumps({"kind": kind, **message}), flush=True)
tell("results", values={"environment": {"device": "none"}})
print("chatter")
for name in job["sections"]:
    tell("start", section=name, limit_s=0.2)
    tell("row", row={"name": name})
    if name == "a":
        time.sleep(60)
    if name == "b":
        tell("end", values={"seconds": 0.1, "error": "Traceback\\ndevice lost"})
        sys.exit(3)
    if name == "c":
        sys.exit(139)
    tell("end", values={"seconds": 0.1})
"""


@pytest.fixture
def run_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import run_gpu

    return run_gpu


def test_dry_run(tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, str(BENCHMARKS / "run_gpu.py"), "--dry-run", "--out", str(out), "--steps", "build=0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    results = json.loads(out.read_text())
    errors = {name: section["error"] for name, section in results["sections"].items() if "error" in section}
    assert not errors
    assert done.returncode == 0, done.stderr
    assert results["steps"] == {"build": 0} and results["dry_run"]
    assert results["environment"]["torch"]
    assert len(results["sections"]) == 16
    assert all(section["rows"] for section in results["sections"].values())
    rows = [row for section in results["sections"].values() for row in section["rows"] if "gate" in row]
    # In bfloat16, double backward through networks as small as these loses all digits.
    assert {row["gate"] for row in rows if row["variant"].startswith("gnfast")} == {"green", "not checked"}
    (row, *_) = results["sections"]["convolutions"]["rows"]
    assert row["second_order_differs_by"] < 0.05


def test_a_section_that_hangs_crashes_or_breaks_the_device_costs_itself_alone(tmp_path, run_gpu, monkeypatch):
    actor = tmp_path / "actor.py"
    actor.write_text(ACTOR)
    monkeypatch.setattr(run_gpu, "SCRIPT", actor)
    monkeypatch.setattr(run_gpu, "GRACE", 2.0)
    results = {"sections": {}}
    out = tmp_path / "results.json"
    run_gpu.supervise({"sections": list("abcde")}, out, results, time_limit=60)
    sections = json.loads(out.read_text())["sections"]
    assert sections == results["sections"]
    assert all(sections[name]["rows"] == [{"name": name}] for name in "abcde")
    assert "time limit" in sections["a"]["error"]
    assert "device lost" in sections["b"]["error"]
    assert "status 139" in sections["c"]["error"]
    assert "error" not in sections["d"] and "error" not in sections["e"]


def test_what_the_time_does_not_reach_is_named(tmp_path, run_gpu):
    results = {"sections": {}}
    run_gpu.supervise({"sections": ["ceilings"]}, tmp_path / "results.json", results, time_limit=0)
    assert "not started" in results["sections"]["ceilings"]["error"]


def test_a_process_that_cannot_start_does_not_stop_the_run(tmp_path, run_gpu, monkeypatch):
    actor = tmp_path / "actor.py"
    actor.write_text("import sys; sys.exit(1)")
    monkeypatch.setattr(run_gpu, "SCRIPT", actor)
    results = {"sections": {}}
    run_gpu.supervise({"sections": ["a", "b"]}, tmp_path / "results.json", results, time_limit=60)
    errors = [section["error"] for section in results["sections"].values()]
    assert errors == ["the process that was to start it ended"] * 2
    assert not results.get("environment")


def test_bounds_are_measured_in_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import must_reach

    assert list(must_reach.PARTS) == [
        *("exactness", "operations", "overhead", "memory", "strongest", "time", "iteration")
    ]
    out = tmp_path / "cpu.json"
    other = {"part": "time", "what": "kept", "critic": "x", "value": 1, "bound": 2}
    old = {"part": "overhead", "what": "replaced", "critic": "x", "value": 1, "bound": 2}
    out.write_text(json.dumps({"environment": {}, "rows": [other, old]}))
    assert must_reach.main(["--only", "overhead", "--out", str(out)]) == 0
    kept, measured = json.loads(out.read_text())["rows"]
    assert kept == other
    assert measured["part"] == "overhead" and measured["value"] > 0
    assert "0 of 0 bounds missed" in capsys.readouterr().out
