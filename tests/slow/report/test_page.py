"""What a run's report says, worked out by hand; whom it shows; and what it refuses."""

import base64
import html
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fedtalk_ray.errors import ConfigError, RunError, ShardError
from fedtalk_ray.marking.verify import verify
from fedtalk_ray.privacy.accounting import Noise
from fedtalk_ray.privacy.ledger import Charge, Ledger
from fedtalk_ray.privacy.publication import told
from fedtalk_ray.report import plots, sections, videos
from fedtalk_ray.report.facts import Facts, duration, key_figures, read_facts, sentence, size
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


class Videos(HTMLParser):
    """The data URIs of a page's videos."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: list[bytes] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "video":
            source = dict(attrs)["src"] or ""
            assert source.startswith("data:video/mp4;base64,")
            self.sources.append(base64.b64decode(source.partition(",")[2], validate=True))


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
    records = [record | {"sites": {"on_line": 12 - record["round"], "members": 14}} for record in records]
    secure = run_of(make_config, records, privacy=NOISY | {"view": "server"})
    figures = {figure.name: figure for figure in key_figures(secure)}
    assert figures["Privacy spent, epsilon"].value == "3.00 / 8.00"
    assert "SIMULATION" in figures["Privacy spent, epsilon"].note
    assert figures["Sent up"].value == "4.00 MB" and figures["Time"].value == "1 min 40 s"
    assert figures["Rounds"].note == "1 of them without a sum"
    assert figures["Sites on line"].value == "10 of 14" and "round 2" in figures["Sites on line"].note
    assert "nobody trained on" in figures["Held-out loss"].note
    hidden = key_figures(run_of(make_config, [told(record) for record in records], privacy=NOISY))
    assert [figure.name for figure in hidden] == ["Rounds", "Held-out loss", "Privacy spent, epsilon"]
    assert hidden[0].note == "how many came to each only the server knows"


def test_what_was_run_is_one_sentence(make_config, plain_record: Record) -> None:
    config = {"strategy": {"name": "fedprox", "mu": 0.5}, "population": {"clients": 4}, "lora_aggregation": "ffa"}
    told = sentence(run_of(make_config, [plain_record(3)], **PLAIN, **config), None)
    assert told.count(". ") == 0 and told.endswith("clips of shards.")
    for part in ("3 rounds", "FedProx (mu 0.5)", "4 of 4 clients", "plain aggregation", "only B", "no noise"):
        assert part in told


@pytest.mark.parametrize(
    ("settings", "more", "says"),
    [
        (PLAIN, {}, "the server saw each slot's sum"),
        ({"privacy": {"insecure_min_survivors": 5}}, {}, "INSECURE: sums of 5 clients"),
        ({"privacy": NOISY}, {}, "SIMULATION: the noise is that of a cohort of 200 out of 20000"),
        ({"privacy": NOISY | {"mechanism": "gaussian"}}, {}, "the server saw the exact sums"),
        ({}, {"interrupted": True}, "Interrupted: round 3"),
        ({}, {"aborted": "too few"}, "Aborted (too few): round 3"),
        ({}, {"attempts": 2}, "Tried again: round 3"),
        (
            {},
            {"clip_norm": 30.0},
            "Loose: averages of the phase faces are 0.037 clip norms long, and one bad client",
        ),
        ({}, {"round": 2}, "Not finished: 2 of 3 rounds"),
    ],
)
def test_readers_are_warned(make_config, secure_record: Record, settings: dict, more: dict, says: str) -> None:
    quiet = run_of(make_config, [secure_record(3)])
    assert warnings_of(quiet) == []
    loose = secure_record(3, clip_norm=30.0)
    assert warnings_of(run_of(make_config, [loose | {"phase": "speech"}, secure_record(3, phase="faces")])) == []
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


def test_the_epsilon_of_a_capped_run_is_what_its_budget_was_held_to(make_run: MakeRun, secure_record: Record) -> None:
    run = make_run([told(secure_record(1))], privacy=NOISY | {"participation_cap": 1})
    ledger, noise = Ledger(RunFolder(run).ledger), Noise("skellam", 2.0)
    for exchange, client in enumerate(("anna", "ben", "cleo"), 1):
        ledger.charge(Charge(exchange, 1, noise, 0.9, (client,)))
    found = read_facts(RunFolder(run))
    assert found.spent is not None
    assert found.spent.release == found.spent.server < 0.8 * ledger.spent(found.config.privacy.delta).release


@pytest.mark.parametrize("view", ["release", "server"])
def test_every_epsilon_of_a_simulated_cohort_says_so(make_run: MakeRun, secure_record: Record, view: str) -> None:
    """The sentence with the budget, the key figure, the ledger's line, and the curves."""
    for name, says in (("simulated", True), ("real", False)):
        privacy = {key: value for key, value in NOISY.items() if says or not key.startswith("simulated")}
        record = secure_record(1) if view == "server" else told(secure_record(1))
        run = make_run([record], name, privacy=privacy | {"view": view})
        Ledger(RunFolder(run).ledger).charge(Charge(1, 1, Noise("skellam", 2.0), 1.0, ("anna",)))
        found = read_facts(RunFolder(run))
        section = sections.privacy(found)
        texts = [sentence(found, None), *(figure.note for figure in key_figures(found) if "epsilon" in figure.name)]
        texts += [line for line in section.sentences if "The ledger: epsilon" in line]
        texts += [plot.caption for plot in section.plots if "Epsilon" in plot.title]
        assert len(texts) == 4
        assert [("SIMULATION" in text) for text in texts] == [says] * len(texts)


def test_units_are_those_that_people_read() -> None:
    assert [size(count) for count in (0, 999, 12_345, 999_600, 7_329_792, 2.5e12)] == [
        "0 B", "999 B", "12.3 kB", "1000 kB", "7.33 MB", "2.50 TB",
    ]  # fmt: skip
    assert [duration(seconds) for seconds in (0.07, 42, 250.2, 7200, 90_061)] == [
        "0.1 s", "42 s", "4 min 10 s", "2 h", "1 d 1 h",
    ]  # fmt: skip


def test_under_secure_aggregation_weights_are_a_sentence_and_nothing_else(make_config, secure_record: Record) -> None:
    section = sections.weights(run_of(make_config, [secure_record(1)]))
    assert section.plots == [] and len(section.sentences) == 1 and "Hidden by design" in section.sentences[0]


def test_shares_are_drawn_from_zero_beside_equal_ones(make_config, plain_record: Record) -> None:
    """Shares of 1/6, 2/6 and 3/6, by name: that of HTML, then anna, whose share is the smallest, then the formula."""
    run = run_of(make_config, [plain_record(1), plain_record(2)], **PLAIN)
    shares, scores = sections.weights(run).plots
    panel = drawn(shares)
    heights = [line.get_ydata() for line in panel.lines[:3]]
    assert np.allclose(heights, [[100 / 3] * 2, [100 / 6] * 2, [50] * 2])
    assert panel.get_ylim()[0] == 0 and "equal shares" in legend(panel)
    assert "0.5 IDSim + 0.5 TempStab" in scores.caption


def test_many_clients_become_a_band(make_config, plain_record: Record) -> None:
    names = tuple(f"k{index}" for index in range(plots.MOST_LINES + 1))
    many = sections.weights(run_of(make_config, [plain_record(1, names), plain_record(2, names)], **PLAIN)).plots[0]
    assert "8 clients in all" in many.caption and legend(drawn(many))[:3] == ["all", "middle half", "median"]
    few = sections.weights(run_of(make_config, [plain_record(1, names[:-1])], **PLAIN)).plots[0]
    assert "k3" in legend(drawn(few)) and "median" not in legend(drawn(few))


def test_communication_counts_what_the_records_count(make_config, plain_record: Record, secure_record: Record) -> None:
    records = [secure_record(1), secure_record(2), {"round": 3, "aggregation": "secure", "interrupted": True}]
    sent, clients, times = sections.communication(run_of(make_config, records)).plots
    assert sent.caption.startswith("4.00 MB in all: the masked vectors")
    assert clients.caption == "14 of 18 updates that were asked for are in a sum. Missing: 2 late, 2 slot died."
    assert "train 1 min 20 s, advertise 1.0 s" in times.caption and "The rest: 15 s." in times.caption
    sent, clients, times = sections.communication(run_of(make_config, [plain_record(1)], **PLAIN)).plots
    assert "one weighted sum from each slot" in sent.caption and clients.caption.startswith("3 of 3 updates")
    assert times.caption == "In all: train 12 s, aggregate 1.0 s, evaluate 4.0 s. The rest: 3.0 s."
    bare = [{name: value for name, value in plain_record(1).items() if name not in ("counts", "stage_seconds")}]
    _, clients, times = sections.communication(run_of(make_config, bare, **PLAIN)).plots
    assert clients.caption.startswith("3 of 3 updates") and times.caption == "Only whole rounds were timed."


@pytest.mark.parametrize("rounds", [2, plots.MOST_BARS + 1])
def test_bars_stand_on_each_other(rounds: int) -> None:
    panel = Figure().subplots()
    plots.draw_bars(panel, range(1, rounds + 1), {"a": [1.0] * rounds, "b": [3.0] * rounds}, "s")
    tops = [bar.get_y() + bar.get_height() for bar in panel.patches[-rounds:]]
    if rounds > plots.MOST_BARS:
        tops = [panel.collections[-1].get_paths()[0].get_extents().y1]
    assert set(tops) == {4.0} and legend(panel) == ["a", "b"] and panel.get_ylim()[0] == 0


def test_epsilon_has_its_budget_and_both_views(make_config, secure_record: Record) -> None:
    run = run_of(make_config, [secure_record(1), secure_record(2)], privacy=NOISY)
    section = sections.privacy(run)
    spent, clipped = section.plots
    panel = drawn(spent)
    assert legend(panel) == ["server view", "release view", "budget 8"]
    assert [line.get_ydata()[-1] for line in panel.lines] == [8.0, 3.0, 8.0]
    assert "(1 in the last round)" in clipped.caption
    assert "fedtalk privacy show runs/r" in section.sentences[-1]
    none = sections.privacy(run_of(make_config, [secure_record(1, clip_fraction=None)]))
    assert none.plots == [] and "infinite" in none.sentences[0]


def test_where_cohorts_are_hidden_the_release_view_is_shown_alone(make_config, secure_record: Record) -> None:
    """Records tell no epsilon in the server view then, which is that of whoever was drawn most often."""
    run = run_of(make_config, [told(secure_record(1)), told(secure_record(2))], privacy=NOISY)
    section = sections.privacy(run)
    panel = drawn(section.plots[0])
    assert legend(panel) == ["release view", "budget 8"]
    assert [line.get_ydata()[-1] for line in panel.lines] == [3.0, 8.0]
    assert "Server view: against whoever knows the cohorts; not told by round" in section.plots[0].caption
    assert not any("hold no epsilon" in line for line in section.sentences)
    unpriced = run_of(make_config, [secure_record(1, epsilon=None, epsilon_server=None)], privacy=NOISY)
    assert "The rounds' records hold no epsilon: the ledger alone does." in sections.privacy(unpriced).sentences


def test_one_measurement_is_no_curve(make_config, plain_record: Record) -> None:
    records = [plain_record(1, held_out_loss=None), plain_record(2)]
    section = sections.convergence(run_of(make_config, records, **PLAIN))
    assert [plot.title for plot in section.plots] == ["Training loss and its terms by round"]
    assert "0.250 after round 2" in section.sentences[0]
    shown = legend(drawn(section.plots[0]))
    assert "tdc" in shown and "sync" not in shown, "a term that is off is not drawn"


def test_a_small_change_does_not_look_like_a_plunge() -> None:
    panel = Figure().subplots()
    plots.draw_lines(panel, {"held-out": [(1, 1.0), (2, 0.999)]}, "loss")
    low, high = panel.get_ylim()
    assert high - low == pytest.approx(0.05, rel=0.01)


def test_names_in_a_plot_are_no_formulas_and_not_too_long() -> None:
    assert plots.plain("$x$") == r"\$x\$" and plots.plain("k" * 30) == "k" * 23 + "…"
    image = plots.picture(lambda panel: plots.draw_lines(panel, {"$x_": [(1, 1.0)], "<b>": [(1, float("nan"))]}, "y"))
    assert image.startswith("data:image/png;base64,")
    (height, width, _) = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).convert("RGB")
    ).shape
    assert width > height > 300


def test_clips_are_dots_beside_their_truth() -> None:
    panel = Figure().subplots()
    plots.draw_dots(panel, {"seen": {"generated": [0.8, 1.1], "copy": [0.0, 0.0]}}, "ratio", 1.0)
    assert sorted(panel.lines[1].get_xdata()) == [0.0, 0.0, 0.8, 1.1]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["generated", "copy"]


@pytest.mark.parametrize(("others", "plots"), [(["unseen"], 1), ([], 0)])
def test_clients_of_whom_only_means_are_told_are_no_dots(others: list[str], plots: int) -> None:
    clips = [{"group": group, "rows": {"generated": {"jitter_ratio": 0.9}}} for group in others]
    metrics = {"clips": dict.fromkeys(["seen", *others], 1), "per_clip": clips}
    section = sections.jitter(metrics, "fedtalk evaluate")
    assert section.sentences == ["Of clients' own clips only means are told, in the table above."]
    assert len(section.plots) == plots


def test_every_metric_has_words_and_a_direction(make_run: MakeRun, plain_record: Record) -> None:
    result = read_metrics(make_run([plain_record(1)], measured=True, **PLAIN) / "metrics.json")
    names = {name for rows in result["groups"].values() for figures in rows.values() for name in figures}
    assert names and names <= set(METRICS)
    seen = next(table for table in tables_of_groups(result) if table.title.startswith("Seen identities"))
    assert seen.columns == ["generated", "other sound", "dubbed", "copy", "autoencoder"]
    assert seen.title == "Seen identities, 2 clips"
    steps = tables_of_groups(result | {"sampling": {"steps": 1.0, "guidance": 1.0}})
    assert "Seen identities, 2 clips, steps 1" in [table.title for table in steps]
    psnr = next(line for line in seen.lines if line.metric == "PSNR, dB")
    assert psnr.better == "↑" and psnr.cells[3] == f"{result['groups']['seen']['copy']['psnr']:.2f}"


def says_that_it_was_generated(video: bytes, folder: Path) -> bool:
    (folder / "player.mp4").write_bytes(video)
    return not verify(folder / "player.mp4").problem()


def test_the_page_shows_an_unseen_person_and_a_client_only_when_named(
    make_run: MakeRun, plain_record: Record, tmp_path: Path
) -> None:
    run = make_run([plain_record(1), plain_record(2), plain_record(3)], measured=True, **PLAIN)
    page = write_report(run).read_text()
    assert (run / "report.html").is_file()
    assert len(Videos(page).sources) == 3 and "zoe: nobody trained on this person" in page
    assert "personalised" not in page
    # Columns of figures are all set alike; words stand in the table of attacks alone.
    assert 'class="words"' not in page
    page = write_report(run, run / "anna.html", client="anna").read_text()
    videos = Videos(page).sources
    assert len(videos) == 7 and len(set(videos)) == 7 and "A client&#39;s face is private" in page
    marked = [says_that_it_was_generated(video, tmp_path) for video in videos]
    assert marked == [False, True, False, False, True, True, False], "truth and autoencoder are not"
    assert "carry the invisible mark" in page
    for video in videos:
        with av.open(io.BytesIO(video)) as container:
            pictures = list(container.decode(video=0))
        with av.open(io.BytesIO(video)) as container:
            sound = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
        assert len(pictures) == 30 and (pictures[0].width, pictures[0].height) == (128, 128)
        assert np.abs(sound).max() > 0.01, "not silence"


def test_nothing_in_a_name_becomes_part_of_the_page(make_run: MakeRun, plain_record: Record) -> None:
    run = make_run([plain_record(1), plain_record(2)], name="<img src=x>", **PLAIN)
    page = write_report(run).read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page and "&lt;img src=x&gt;" in page
    assert page.count("<script>") == 1 and page.count("</script>") == 1


def test_the_configuration_can_be_pasted(make_run: MakeRun, plain_record: Record) -> None:
    run = make_run([plain_record(1)], **PLAIN)
    shown = re.search(r'<pre id="yaml">(.*?)</pre>', write_report(run).read_text(), re.DOTALL)
    assert shown and html.unescape(shown[1]) == (run / "config.yaml").read_text()


def test_without_shards_the_runs_own_samples_are_shown(
    make_run: MakeRun, plain_record: Record, exported: Path, tmp_path: Path
) -> None:
    whole = write_report(make_run([plain_record(1)], **PLAIN)).read_text()
    gone = make_run([plain_record(1)], name="gone", shards=str(tmp_path / "gone-shards"), **PLAIN)
    page = write_report(gone).read_text()
    assert "does not exist" in page and not Videos(page).sources and "There is no sample of an unseen person" in page
    (gone / "samples").mkdir()
    for name in ("round-00002.mp4", "round-00010.mp4"):
        (gone / "samples" / name).write_bytes(Videos(whole).sources[name == "round-00010.mp4"])
    page = write_report(gone).read_text()
    assert Videos(page).sources == [Videos(whole).sources[1]] and "after round 10" in page
    (gone / "samples" / "round-00011.mp4").write_bytes(b"cut")
    assert "The newest sample cannot be shown" in write_report(gone).read_text()
    with pytest.raises(RunError, match="client 'nobody' took no part"):
        write_report(gone, client="nobody")


def test_without_a_model_the_page_says_so(make_run: MakeRun, plain_record: Record) -> None:
    run = make_run([plain_record(1)], **PLAIN)
    (run / "pipeline").unlink()
    assert "No new videos could be made" in write_report(run).read_text()


def test_videos_that_do_not_fit_are_left_out(make_run: MakeRun, plain_record: Record, monkeypatch) -> None:
    run = make_run([plain_record(1)], **PLAIN)
    first = Videos(write_report(run).read_text()).sources[0]
    monkeypatch.setattr(videos, "BUDGET", len(first) + 5000)
    page = write_report(run).read_text()
    assert Videos(page).sources == [first] and page.count("larger than 10 MB") == 2


def test_a_long_run_of_many_clients_is_still_a_small_page(
    make_run: MakeRun, plain_record: Record, tmp_path: Path
) -> None:
    clients = tuple(f"client{index:07d}" for index in range(20))
    records = [plain_record(number, clients) for number in range(1, 1501)]
    run = make_run(records, rounds=1500, shards=str(tmp_path / "none"), **PLAIN)
    assert write_report(run).stat().st_size < 2_000_000


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda run: (run / "config.yaml").unlink(), "is no run folder"),
        (lambda run: (run / "config.yaml").write_text("rounds: many"), "rounds"),
        (lambda run: (run / "history.jsonl").unlink(), "has no finished round yet"),
        (lambda run: (run / "history.jsonl").write_text('{"loss": 1}\n'), "line 1 is no round's record"),
        (lambda run: (run / "history.jsonl").write_bytes(b"\xff\n"), "cannot be read"),
        (lambda run: (run / "metrics.json").write_text("{"), "is not JSON"),
        (lambda run: (run / "metrics.json").write_text("[]"), "holds a list"),
        (lambda run: (run / "metrics.json").write_text('{"groups": {}}'), "has another shape"),
        (lambda run: drop(run / "metrics.json", "half_widths_95", "seen", "copy"), "no half widths"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_the_old_page_stays(
    make_run: MakeRun, plain_record: Record, break_it: Callable[[Path], object], says: str
) -> None:
    run = make_run([plain_record(1)], measured=True, **PLAIN)
    (run / "report.html").write_text("old")
    break_it(run)
    with pytest.raises((RunError, ConfigError), match=says) as refused:
        write_report(run)
    assert len(str(refused.value).splitlines()) == 1
    assert (run / "report.html").read_text() == "old" and not list(run.glob(".*"))


def test_clients_that_cannot_be_shown_are_refused(make_run: MakeRun, plain_record: Record) -> None:
    run = make_run([plain_record(1)], **PLAIN)
    with pytest.raises(ShardError, match="client 'nobody' is not in the shards"):
        write_report(run, client="nobody")
    with pytest.raises(RunError, match=r"client 'c\$1\$' has no identity adapter"):
        write_report(run, client="c$1$")
    with pytest.raises(RunError, match="cannot be read"):
        write_report(run, metrics=run / "none.json")


def drop(path: Path, *keys: str) -> None:
    tree = json.loads(path.read_text())
    inner = tree
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    path.write_text(json.dumps(tree))


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
