"""The script for a card, small and on the CPU, so that it cannot rot."""

import re

import pytest

from jobs.benchmarks import card


def test_the_script_for_a_card_runs_on_a_cpu(ray_cluster, capsys: pytest.CaptureFixture[str]) -> None:
    card.main(["--small", "--steps", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(("| tiny", "| MuseTalk"))]
    assert len(rows) == 6
    assert all(float(row.split("|")[2]) > 0 for row in rows)
    assert re.fullmatch(r"one slot takes [\d.]+ steps of tiny a second; two on halves [\d.]+ and [\d.]+", lines[-2])
    assert re.fullmatch(r"fedtalk-tiny makes [1-9]\d* frames a second \(crops\)", lines[-1])


def test_without_a_card_the_full_size_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA device: the full sizes need a card of 12 GB or more; --small"):
        card.main([])
