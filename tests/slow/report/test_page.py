"""What a run's report says, worked out by hand; whom it shows; and what it refuses."""

import base64
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedtalk_ray.errors import RunError, ShardError
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.media.video import read_video
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.publication import told
from fedtalk_ray.report import sections, videos
from fedtalk_ray.report.facts import Facts, key_figures, read_facts, sentence
from fedtalk_ray.report.metrics import METRICS, read_metrics, tables_of_groups, worse_than_copying
from fedtalk_ray.report.page import outdated, write_report
from fedtalk_ray.report.warnings import warnings_of
from fedtalk_ray.runs.folder import RunFolder
from fedtalk_ray.settings import TrainConfig

NOISY = {
    "mechanism": "skellam", "epsilon": 8.0, "noise_multiplier": 2.0, "clip_norm": 1.0, "insecure_min_survivors": 5,
    "simulated_cohort": 200, "simulated_population": 20_000,
}  # fmt: skip
PLAIN = {"aggregation": "plain"}
MakeRun = Callable[..., Path]
Record = Callable[..., dict[str, Any]]


def videos_in(page: str) -> list[bytes]:
    sources = re.findall(r'<video[^>]*? src="data:video/mp4;base64,([^"]+)"', page)
    return [base64.b64decode(source, validate=True) for source in sources]


def run_of(make_config: Callable[..., TrainConfig], history: list[dict[str, Any]], **settings: Any) -> Facts:
    return Facts(RunFolder(Path("runs/r")), make_config(rounds=3, cohort={"size": 9}, **settings), "", history, None)


def drawn(plot: sections.Plot) -> Axes:
    """The panel that a plot is drawn on."""
    panel = Figure().subplots()
    plot.draw(panel)
    return panel


def legend(panel: Axes) -> list[str]:
    return panel.get_legend_handles_labels()[1]


def test_key_figures_are_the_records(make_config, plain_record: Record, secure_record: Record) -> None:
    plain = run_of(make_config, [plain_record(1), plain_record(2)], **PLAIN)
    figures = {figure.name: figure for figure in key_figures(plain)}
    assert figures["Rounds"].value == "2 of 3"
    assert figures["Held-out loss"].value == "0.250"
    assert "round 2" in figures["Held-out loss"].note and "clients' own" in figures["Held-out loss"].note
    assert figures["Sent up"].value == "800 kB"
    assert figures["Time"].value == "40 s"
    assert figures["Privacy spent, epsilon"].value == "∞"
    records = [secure_record(1), secure_record(2, survivors=0, aborted="too few")]
    secure = run_of(make_config, records, privacy=NOISY | {"view": "server"})
    figures = {figure.name: figure for figure in key_figures(secure)}
    assert figures["Privacy spent, epsilon"].value == "3.00 / 8.00"
    assert "SIMULATION" in figures["Privacy spent, epsilon"].note
    assert figures["Sent up"].value == "4.00 MB" and figures["Time"].value == "1 min 40 s"
    assert figures["Rounds"].note == "1 of them without a sum"
    assert "nobody trained on" in figures["Held-out loss"].note
    hidden = key_figures(run_of(make_config, [told(record) for record in records], privacy=NOISY))
    assert [figure.name for figure in hidden] == ["Rounds", "Held-out loss", "Privacy spent, epsilon"]
    said = sentence(run_of(make_config, [plain_record(3)], **PLAIN, strategy={"name": "fedprox", "mu": 0.5}), None)
    for part in ("3 rounds", "FedProx (mu 0.5)", "plain aggregation", "no noise"):
        assert part in said


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        (PLAIN, {}, "the server saw each slot's sum"),
        ({"privacy": {"insecure_min_survivors": 5}}, {}, "INSECURE: sums of 5 clients"),
        ({"privacy": NOISY}, {}, "SIMULATION: the noise is that of a cohort of 200 out of 20000"),
        ({}, {"interrupted": True}, "Interrupted: round 3"),
        ({}, {"aborted": "too few"}, "Aborted (too few): round 3"),
        ({}, {"clip_norm": 30.0}, "Loose: averages of the phase faces are 0.037 clip norms long, and one bad client"),
        ({}, {"round": 2}, "Not finished: 2 of 3 rounds"),
    ],
)
def test_readers_are_warned(make_config, secure_record: Record, settings: dict, more: dict, says: str) -> None:
    quiet = run_of(make_config, [secure_record(3)])
    assert warnings_of(quiet) == []
    warned = warnings_of(run_of(make_config, [secure_record(3) | more], **settings))
    assert any(says in line for line in warned), warned


def test_the_ledger_wins_over_the_records(make_run: MakeRun, secure_record: Record) -> None:
    """An exchange that was charged and whose round was lost is in no record, and was spent all the same."""
    run = make_run([secure_record(1)], privacy=NOISY | {"view": "server"})
    ledger = Ledger(RunFolder(run).ledger)
    for exchange in (1, 2):
        ledger.charge(Charge(exchange, 1, Noise("skellam", 2.0), 1.0, ("anna",)))
    found = read_facts(RunFolder(run))
    spent = ledger.spent(found.config.privacy.delta)
    assert spent.release > 1.5
    assert f"{spent.release:.2f} / {spent.server:.2f}" in [figure.value for figure in key_figures(found)]
    told = " ".join(sections.privacy(found).sentences)
    assert "2 exchanges are charged" in told and "not what the last record says" in told


def test_shares_are_drawn_from_zero_beside_equal_ones_unless_hidden(
    make_config, plain_record: Record, secure_record: Record
) -> None:
    """Shares of 1/6, 2/6 and 3/6, by name: that of HTML, then anna, whose share is the smallest, then the formula."""
    run = run_of(make_config, [plain_record(1), plain_record(2)], **PLAIN)
    shares = sections.weights(run).plots[0]
    panel = drawn(shares)
    heights = [line.get_ydata() for line in panel.lines[:3]]
    assert np.allclose(heights, [[100 / 3] * 2, [100 / 6] * 2, [50] * 2])
    assert panel.get_ylim()[0] == 0 and "equal shares" in legend(panel)
    hidden = sections.weights(run_of(make_config, [secure_record(1)]))
    assert hidden.plots == [] and "Hidden by design" in hidden.sentences[0]


def test_communication_counts_what_the_records_count(make_config, plain_record: Record, secure_record: Record) -> None:
    records = [secure_record(1), secure_record(2), {"round": 3, "aggregation": "secure", "interrupted": True}]
    sent, clients, times = sections.communication(run_of(make_config, records)).plots
    assert sent.caption.startswith("4.00 MB in all: the masked vectors")
    assert clients.caption == "14 of 18 updates that were asked for are in a sum. Missing: 2 late, 2 slot died."
    assert "train 1 min 20 s, advertise 1.0 s" in times.caption and "The rest: 15 s." in times.caption
    bare = [{name: value for name, value in plain_record(1).items() if name not in ("counts", "stage_seconds")}]
    _, clients, times = sections.communication(run_of(make_config, bare, **PLAIN)).plots
    assert clients.caption.startswith("3 of 3 updates") and times.caption == "Only whole rounds were timed."


def test_epsilon_has_its_budget_and_both_views(make_config, secure_record: Record) -> None:
    run = run_of(make_config, [secure_record(1), secure_record(2)], privacy=NOISY)
    section = sections.privacy(run)
    spent, clipped = section.plots
    panel = drawn(spent)
    assert legend(panel) == ["server view", "release view", "budget 8"]
    assert [line.get_ydata()[-1] for line in panel.lines] == [8.0, 3.0, 8.0]
    panel = drawn(sections.privacy(run_of(make_config, [told(secure_record(2))], privacy=NOISY)).plots[0])
    assert legend(panel) == ["release view", "budget 8"], "the server view would tell who was drawn most often"
    assert "(1 in the last round)" in clipped.caption
    none = sections.privacy(run_of(make_config, [secure_record(1, clip_fraction=None)]))
    assert none.plots == [] and "infinite" in none.sentences[0]


def test_every_metric_has_words_and_a_direction(make_run: MakeRun, plain_record: Record) -> None:
    result = read_metrics(make_run([plain_record(1)], measured=True, **PLAIN) / "metrics.json")
    names = {name for rows in result["groups"].values() for figures in rows.values() for name in figures}
    assert names and names <= set(METRICS)
    seen = next(table for table in tables_of_groups(result) if table.title.startswith("Seen identities"))
    assert seen.columns == ["generated", "other sound", "dubbed", "copy", "autoencoder"]
    psnr = next(line for line in seen.lines if line.metric == "PSNR, dB")
    assert psnr.better == "↑" and psnr.cells[3] == f"{result['groups']['seen']['copy']['psnr']:.2f}"


def test_the_page_shows_an_unseen_person_and_a_client_only_when_named(pages: dict[str, Path], tmp_path: Path) -> None:
    page = pages["secure"].read_text()
    assert len(videos_in(page)) == 3 and "zoe: nobody trained on this person" in page
    assert "personalised" not in page
    page = pages["plain"].read_text()
    videos = videos_in(page)
    assert len(videos) == 7 and len(set(videos)) == 7 and "A client&#39;s face is private" in page
    for number, video in enumerate(videos):
        (tmp_path / "player.mp4").write_bytes(video)
        found = read_video(tmp_path / "player.mp4")
        assert found.frames.shape == (30, 128, 128, 3) and np.abs(found.audio).max() > 0.01, "not silence"
        marked = not verify(tmp_path / "player.mp4").problem()
        assert marked == (number in (1, 4, 5)), "truth and autoencoder are not"


def test_nothing_in_a_name_becomes_part_of_the_page_whose_configuration_can_be_pasted(
    make_run: MakeRun, plain_record: Record, tmp_path: Path
) -> None:
    run = make_run([plain_record(1), plain_record(2)], name="<img src=x>", shards=str(tmp_path / "none"), **PLAIN)
    page = write_report(run).read_text()
    shown = re.search(r'<pre id="yaml">(.*?)</pre>', page, re.DOTALL)
    assert shown and html.unescape(shown[1]) == (run / "config.yaml").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page and "&lt;img src=x&gt;" in page
    assert page.count("<script>") == 1 and page.count("</script>") == 1


def test_without_shards_the_runs_own_samples_are_shown(
    make_run: MakeRun, plain_record: Record, pages: dict[str, Path], tmp_path: Path
) -> None:
    whole = pages["secure"].read_text()
    gone = make_run([plain_record(1)], name="gone", shards=str(tmp_path / "gone-shards"), **PLAIN)
    page = write_report(gone).read_text()
    assert "does not exist" in page and not videos_in(page) and "There is no sample of an unseen person" in page
    (gone / "samples").mkdir()
    for name in ("round-00002.mp4", "round-00010.mp4"):
        (gone / "samples" / name).write_bytes(videos_in(whole)[name == "round-00010.mp4"])
    page = write_report(gone).read_text()
    assert videos_in(page) == [videos_in(whole)[1]] and "after round 10" in page
    with pytest.raises(RunError, match="client 'nobody' took no part"):
        write_report(gone, client="nobody")


def test_videos_that_do_not_fit_are_left_out_and_who_cannot_be_shown_is_refused(
    make_run: MakeRun, plain_record: Record, pages: dict[str, Path], monkeypatch
) -> None:
    run = make_run([plain_record(1)], **PLAIN)
    for client, why in (("nobody", "is not in the shards"), ("c$1$", "has no identity adapter")):
        with pytest.raises((RunError, ShardError), match=rf"client '{re.escape(client)}' {why}"):
            write_report(run, client=client)
    sizes = [len(video) for video in videos_in(pages["secure"].read_text())]
    monkeypatch.setattr(videos, "BUDGET", sizes[0] + min(5000, min(sizes) // 2))
    page = write_report(run).read_text()
    (first,) = videos_in(page)
    assert abs(len(first) - sizes[0]) < 100 and page.count("larger than 10 MB") == 2


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run folder"),
        (lambda run: (run / "history.jsonl").write_text('{"loss": 1}\n'), "line 1 is no round's record"),
        (lambda run: (run / "metrics.json").write_text("{"), "is not JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_the_old_page_stays(
    make_run: MakeRun, plain_record: Record, break_it: Callable[[Path], object], says: str
) -> None:
    run = make_run([plain_record(1)], measured=True, **PLAIN)
    (run / "report.html").write_text("old")
    break_it(run)
    with pytest.raises(RunError, match=says) as refused:
        write_report(run)
    assert len(str(refused.value).splitlines()) == 1
    assert (run / "report.html").read_text() == "old" and not list(run.glob(".*"))


def test_where_the_model_is_worse_than_a_still_it_is_said_in_words() -> None:
    rows = {
        "generated": {"psnr": 29.0, "ssim": 0.9, "st_lpips": 0.04, "jitter_ratio": 1.0, "identity": None, "other": 1.0},
        "copy": {"psnr": 30.0, "ssim": 0.8, "st_lpips": 0.02, "jitter_ratio": 0.0, "identity": 0.9, "other": 2.0},
    }
    # SSIM is better, jitter has no better side, identity is not known, "other" is no metric of ours.
    assert worse_than_copying(rows) == ["PSNR, dB", "ST-LPIPS"]


def test_figures_of_an_older_model_are_told_apart(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.release(3, None, lambda place: place.mkdir())
    assert outdated(run, None) == outdated(run, {"after_round": 3}) == outdated(run, {}) == []
    assert outdated(run, {"after_round": 2}) == [
        "Figures of another model: the table and the jitter are of round 2, the videos of round 3."
    ]
