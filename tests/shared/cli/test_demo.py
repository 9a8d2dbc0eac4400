"""`polyfm demo`: which demo is run, and (longer tier) the whole of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyfm.domains.molecules import demo
from polyfm.shared.cli.list import domains

Polyfm = Callable[..., Any]


def test_a_domain_s_demo_is_run(polyfm: Polyfm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    called: list[Any] = []
    monkeypatch.setattr(demo, "run", lambda out, seconds: called.append((out, seconds)))
    assert polyfm("demo", "molecules", "--out", tmp_path / "x", "--seconds", 5).code == 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo-molecules").mkdir(parents=True)
    assert polyfm("demo", "molecules").code == 0
    assert called == [(tmp_path / "x", 5), (Path("runs/demo-molecules-2"), 0)]


@pytest.mark.parametrize("words", [["alchemy"], [], ["molecules", "more"]])
def test_wrong_words(polyfm: Polyfm, words: list[str]) -> None:
    shown = polyfm("demo", *words)
    assert shown.code == 2
    assert shown.err.count("\n") == 1


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("domain", domains())
def test_the_whole_demo_ends_in_a_report(polyfm: Polyfm, tmp_path: Path, domain: str) -> None:
    start = time.monotonic()
    shown = polyfm("demo", domain, "--out", tmp_path / "demo")
    assert shown.code == 0, shown.err
    print(f"demo: {time.monotonic() - start:.0f} s")
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert len(page) < 10 * 2**20
    pretrained, finetuned = (
        json.loads((tmp_path / "demo" / run / "metrics.json").read_text()) for run in ("pretrain", "finetune")
    )
    if domain == "molecules":
        assert pretrained["retrieval/smiles-properties/r@10"] > 3 * pretrained["retrieval/chance_r@10"]
        assert finetuned["test/r2"] > 0
        assert finetuned["baseline/ecfp4_forest/rmse"] > 0
    else:
        assert pretrained["retrieval/genes-text/r@1"] > 3 / pretrained["retrieval/texts"]
        assert finetuned["test/macro_f1"] > finetuned["baseline/commonest/macro_f1"]
        assert "Marker genes" in page
        assert page.count("Map of cells") == 2
