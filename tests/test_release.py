"""What is released: the sdist is complete, and what the package says of itself is true and said once."""

import re
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import yaml

import gnfast
from release import wheels
from tests.processes import run_python

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what git has is the measure")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """What git has, and what the sdist of it holds: name -> content."""
    project = tmp_path_factory.mktemp("project")
    tracked = wheels.copy_tracked(project)
    code = "import runpy, sys; sys.argv = ['setup.py', '--quiet', 'sdist', '--formats=tar']; runpy.run_path('setup.py')"
    run = run_python("-c", code, cwd=project, GNFAST_BUILD="none")
    assert run.returncode == 0, run.stderr
    (path,) = (project / "dist").iterdir()
    with tarfile.open(path) as files:
        content = {
            member.name.partition("/")[2]: files.extractfile(member).read() for member in files if member.isfile()
        }
    return tracked, content


def test_the_sdist_holds_what_git_has(sdist):
    tracked, content = sdist
    made = {name for name in content if name.startswith("gnfast.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert content.keys() - made == set(tracked)
    assert all(content[name] == (ROOT / name).read_bytes() for name in tracked)


def test_an_editable_install_is_a_path(tmp_path):
    """A module that finds gnfast would come after a folder of that name, as a checkout is, where Python is started."""
    wheels.copy_tracked(tmp_path)
    code = "from setuptools.build_meta import build_editable; build_editable('.')"
    run = run_python("-c", code, cwd=tmp_path, GNFAST_BUILD="none")
    assert run.returncode == 0, run.stderr
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        assert [name for name in wheel.namelist() if ".dist-info/" not in name] == ["__editable__.gnfast-0.1.0.pth"]


def test_the_metadata_is_true(sdist):
    said = message_from_string(sdist[1]["PKG-INFO"].decode())
    assert said["Name"] == "gnfast" and said["Version"] == gnfast.__version__
    assert said["License-Expression"] == "MIT" and said["License-File"] == "LICENSE"
    assert said.get_payload() == (ROOT / "README.md").read_text()
    for minor in (11, 12, 13):
        assert f"Programming Language :: Python :: 3.{minor}" in said.get_all("Classifier")
    assert "numpy" in (needs := said.get_all("Requires-Dist")) and "torch>=2.11" in needs
    assert {need.partition(";")[0] for need in needs if "extra ==" not in need} == {"numpy", "torch>=2.11"}


def test_setup_py_asks_for_what_pyproject_does():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    stated = dict(re.findall(r'"(setuptools|torch)": \(([\d, ]+)\)', (ROOT / "setup.py").read_text()))
    oldest = {name: ".".join(re.findall(r"\d+", numbers)) for name, numbers in stated.items()}
    wanted = project["build-system"]["requires"] + project["project"]["dependencies"]
    assert {f"{name}>={version}" for name, version in oldest.items()} == set(wanted) - {"numpy"}


def test_the_citation_has_what_its_format_requires_and_the_papers():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} < cited.keys()
    assert (cited["cff-version"], cited["version"], cited["license"]) == ("1.2.0", gnfast.__version__, "MIT")
    for paper in cited["references"]:
        assert {"type", "title", "authors", "year"} < paper.keys()
        assert "doi" in paper or "arXiv" in paper["identifiers"][0]["value"]
        assert all({"given-names", "family-names"} == author.keys() for author in paper["authors"])
    listed = (ROOT / "README.md").read_text().partition("## Papers")[2]
    titles = [" ".join(title.split()) for title in re.findall(r"\*([^*]+)\*", listed)]
    assert sorted(title.rstrip("?").lower() for title in titles) == sorted(
        paper["title"].rstrip("?").lower() for paper in cited["references"]
    )


def test_pythons_of_the_machine_are_found_from_311_on(tmp_path, monkeypatch):
    for version in ("3.10.4", "3.11.7", "3.11.9", "3.13.0"):
        python = tmp_path / "versions" / version / "bin" / f"python{version.rpartition('.')[0]}"
        python.parent.mkdir(parents=True)
        python.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [Path(found).parents[1].name for found in wheels.pythons()] == ["3.11.9", "3.13.0"]
