"""The demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossamer.experiments import demo
from gossamer.experiments.study import lines


def test_demo_compares_six_and_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "available", lambda name: False)
    study = demo.demo_study(steps=40, seeds=(0,))
    assert study.base["data"] == "mnist5k"
    folder = demo.demo_folder(study, tmp_path / "demo")
    assert demo.demo_folder(study, tmp_path / "demo") == folder  # unfinished: resumed
    outcome = demo.run_demo(study, folder)
    assert [line.label for line in lines(outcome)] == ["dense", "SMALL", "static", "SET", "RigL", "rewire"]
    counts = {line.label: line.results[0].counts["active"] for line in lines(outcome)}
    assert counts["static"] == counts["SET"] == counts["RigL"] == counts["rewire"] == round(0.05 * counts["dense"])
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert all(line.label in text for line in lines(outcome))
    assert demo.demo_folder(study, tmp_path / "demo").name == "demo-2"  # finished: kept


def test_demo_prefers_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "available", lambda name: name == "fashion-mnist")
    assert demo.demo_study().base["data"] == "fashion-mnist"


def test_demo_keeps_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    assert demo.demo_folder(demo.demo_study(), tmp_path / "demo").name == "demo-2"
