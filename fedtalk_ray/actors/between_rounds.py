"""What is done between two rounds: over to the next phase, the held-out loss, samples to look at."""

from typing import Any

from fedtalk_ray.actors.parameter_server import ask
from fedtalk_ray.actors.pool import Pool, result_of
from fedtalk_ray.messages import HeldOutFigure
from fedtalk_ray.recipe import PhaseName, PhaseRounds


def held_out(pool: Pool, figure: str, people: list[str], number: int, shared: Any) -> float:
    """The mean over these people, each on its own clips, clients with their own adapters.

    figure: "held_out_loss" or "lip_agreement" (`actors.client`).
    """
    outcomes = pool.run(figure, people, number, shared)
    parts: list[HeldOutFigure] = [result_of(outcome) for outcome in outcomes]
    return sum(part.total for part in parts) / sum(part.people for part in parts)


def release(pool: Pool, speakers: list[str], number: int, shared: Any) -> None:
    """Makes these parameters the run's released model, and lets it speak a held-out clip of each speaker.

    A client's sample stays in the client's folder, since it shows the client's face. shared: of the phase `faces`; None
    where that is over, for the model as it is.
    """
    pool.one("export", shared, number)
    for outcome in pool.run("sample", speakers, number, shared):
        result_of(outcome)


def begin_phase(pool: Pool, server: Any, phase: PhaseRounds) -> None:
    """Takes the server and all slots, those that come later too, over to a phase.

    A run that is gone on with, or whose server came back, may be in it already.
    """
    under_way = ask(server, "phase") == phase.name
    results = ask(server, "results" if under_way else "end_phase")
    pool.tell_all("enter", phase.name, results)
    pool.vector = pool.one("enter", phase.name, results)
    if not under_way:
        ask(server, "begin_phase", phase.name, pool.vector, phase.first - 1, pool.one("lora_pairs"))


def end_last_phase(pool: Pool, server: Any, phase: PhaseName) -> None:
    """Lets all slots take on what the last phase of a run ended with."""
    pool.tell_all("enter", phase, ask(server, "end_phase"))
