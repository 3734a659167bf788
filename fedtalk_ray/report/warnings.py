"""What a reader of the report must know before believing its figures."""

from statistics import median

from fedtalk_ray.privacy.protocol import PRODUCTION_FLOOR
from fedtalk_ray.privacy.publication import simulation
from fedtalk_ray.privacy.update_codec import MOST_ROUNDING
from fedtalk_ray.report.facts import Facts

LOOSE = 10
"""How many times a usual update's length a clip norm may be before readers are warned."""


def warnings_of(run: Facts) -> list[str]:
    """What a reader must know before believing the figures, most grave first."""
    config, privacy, lines = run.config, run.config.privacy, []
    if note := simulation(privacy):
        lines.append(f"{note}.")
    if config.aggregation == "plain":
        scores = ", and clients reported their scores, sample counts and losses" if privacy.mechanism == "none" else ""
        lines.append(f"Plain aggregation: the server saw each slot's sum of updates in the clear{scores}.")
    if config.aggregation == "secure" and privacy.insecure_min_survivors is not None:
        lines.append(
            f"INSECURE: sums of {privacy.insecure_min_survivors} clients may be opened "
            f"(privacy.insecure_min_survivors); a sum of fewer than {PRODUCTION_FLOOR} says much about each."
        )
    if privacy.mechanism == "gaussian":
        lines.append("Central noise: the server saw the exact sums and is trusted; epsilon is against all others.")
    if run.last < config.all_rounds:
        lines.append(
            f"Not finished: {run.last} of {config.all_rounds} rounds. The run goes on, was stopped, or its privacy "
            "budget allows no more rounds."
        )
    if interrupted := [record["round"] for record in run.history if record.get("interrupted")]:
        lines.append(
            f"Interrupted: {_rounds(interrupted)} changed the model, but the run died before writing down more; "
            "figures of such a round are missing below."
        )
    aborted: dict[str, list[int]] = {}
    for record in run.history:
        if record.get("aborted"):
            aborted.setdefault(str(record["aborted"]), []).append(record["round"])
    for why, rounds in aborted.items():
        lines.append(
            f"Aborted ({why}): {_rounds(rounds)}. The model stayed as it was; privacy may be spent all the same."
        )
    if coarse := [record["round"] for record in run.history if record.get("rounding_error", 0) > MOST_ROUNDING]:
        lines.append(
            f"Rounded: in {_rounds(coarse)} rounding to integers added more than {100 * MOST_ROUNDING:g}% to the "
            "update, because the clients' weights are tiny; lower strategy.gamma or privacy.samples_cap, or set "
            "privacy.weight_reference near a usual weight."
        )
    faces = [record for record in run.history if record.get("phase", "faces") == "faces" and "update_norm" in record]
    if config.aggregation == "secure" and privacy.mechanism == "none" and faces:
        # From round to round: without a `privacy.clip_norm` the bound falls as the learning rate does.
        usual = median(record["update_norm"] / record["clip_norm"] for record in faces)
        if usual * LOOSE < 1:
            lines.append(
                f"Loose: averages of the phase faces are {usual:.2g} clip norms long, and one bad client can make them "
                "one long, which can destroy the model; set privacy.clip_norm near a client's usual update."
            )
    if again := [record["round"] for record in run.history if record.get("attempts")]:
        lines.append(f"Tried again: {_rounds(again)}, whose exchange or sums were lost with a process that died.")
    return lines


def _rounds(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:12])) + (", …" if len(numbers) > 12 else "")
    return f"round{'s' * (len(numbers) > 1)} {shown}"
