"""What changed between two result files."""

import json

import pytest

from gnfast.bench.compare import differences, main


def results(time, gate="green", **sections):
    row = {"network": "CNN 32", "variant": "a", "batch": 64, "median_ms": time, "q25_ms": 9.0, "gate": gate}
    return {"sections": {"critic": {"rows": [row]}, **sections}}


def test_what_moved_is_told_and_what_did_not_is_not():
    assert differences(results(1.0), results(1.04)) == ["1 rows in both, 0 figures moved by more than 5%"]
    first, last = differences(results(2.0), results(1.0))
    assert first == "×0.500  2 → 1  median_ms  critic, CNN 32, a, 64"
    assert "1 figures moved" in last
    assert "×inf" in differences(results(0.0), results(1.0))[0]


def test_gates_failures_and_rows():
    other = {"rows": [{"name": "copy", "GB/s": 3000.0, "times": {"median_us": 5.0}}]}
    faster = {"rows": [{"name": "copy", "GB/s": 4000.0, "times": {"median_us": 4.0}}], "error": "ValueError: no"}
    lines = differences(results(1.0, copies=other), results(1.0, "red", copies=faster))
    assert "gate green → red  critic, CNN 32, a, 64" in lines
    assert "fails now: copies, ValueError: no" in lines
    assert {"×1.333  3000 → 4000  GB/s  copies, copy", "×0.800  5 → 4  times.median_us  copies, copy"} <= set(lines)
    assert "no longer fails: copies, ValueError: no" in differences(results(1.0, copies=faster), results(1.0))
    assert "gone: copies, copy" in differences(results(1.0, copies=other), results(1.0))
    assert "new: copies, copy" in differences(results(1.0), results(1.0, copies=other))


def test_as_a_command(tmp_path, capsys):
    paths = [tmp_path / name for name in ("old.json", "new.json")]
    for path, time in zip(paths, (1.0, 3.0), strict=True):
        path.write_text(json.dumps(results(time)))
    assert main([*map(str, paths)]) == 0
    assert "×3.000" in capsys.readouterr().out
    for content, message in (("{", "not JSON"), ("[]", "not a result of a benchmark")):
        paths[0].write_text(content)
        with pytest.raises(SystemExit):
            main([*map(str, paths)])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*map(str, paths), "--least", "-1"])
    assert "--least" in capsys.readouterr().err
