"""`fedtalk privacy`: how much noise a budget needs, before a run; what a run has spent, or a client."""

from pathlib import Path
from typing import Annotated

import typer

from fedtalk_ray.errors import RunError

app = typer.Typer(help="Differential privacy: plan the noise, show what was spent.", no_args_is_help=True)


@app.command()
def plan(
    clients: Annotated[int, typer.Option(min=1, help="Population.")],
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all phases together.")],
    epsilon: Annotated[float, typer.Option(help="The budget, above 0.")],
    delta: Annotated[float, typer.Option(help="Well below 1 / clients.")] = 1e-5,
    cohort: Annotated[int | None, typer.Option(min=1, help="Clients expected per round; else a quarter.")] = None,
    cap: Annotated[int | None, typer.Option(min=1, help="A client's rounds at most; else the expected number.")] = None,
    mechanism: Annotated[str, typer.Option(help="skellam (distributed) or gaussian (a trusted server).")] = "skellam",
) -> None:
    """The noise multiplier that keeps a run within a budget, for both observers.

    Example: `fedtalk privacy plan --clients 64 --rounds 48 --epsilon 8 --delta 1e-5 --cohort 16`
    """
    from fedtalk_ray.federation.privacy_plan import plan_lines

    print("\n".join(plan_lines(clients, rounds, epsilon, delta, cohort, cap, mechanism)))


@app.command()
def show(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """What a run has spent so far.

    Example: `fedtalk privacy show runs/private`
    """
    from fedtalk_ray.privacy.ledger import Ledger
    from fedtalk_ray.privacy.publication import simulation
    from fedtalk_ray.runs.folder import RunFolder

    folder = RunFolder(run)
    config, ledger = folder.config(), Ledger(folder.ledger)
    privacy = config.privacy
    print(f"{run}: aggregation {config.aggregation}, noise {privacy.mechanism}")
    if config.aggregation == "plain":
        print("the server saw the slots' sums in the clear")
    if privacy.insecure_min_survivors is not None:
        print(f"INSECURE: sums of {privacy.insecure_min_survivors} clients may be opened, fewer than 8")
    if privacy.mechanism == "none":
        print("no noise: epsilon is infinite in every view")
        return
    spent = ledger.spent(privacy.delta, privacy.participation_cap)
    multipliers = sorted({charge.noise.multiplier for charge in ledger.charges})
    print(f"charged: {spent.rounds} rounds, noise multiplier {', '.join(f'{z:g}' for z in multipliers) or 'none yet'}")
    print(
        f"release view (models, not cohorts):  epsilon {spent.release:.3f} at delta {spent.delta:g} "
        f"(bound by Renyi divergence {spent.release_bound:.3f})"
    )
    print(
        f"server view (knows the cohorts):     epsilon {spent.server:.3f}, {spent.participations} rounds of one client "
        f"(bound {spent.server_bound:.3f})"
    )
    if privacy.mechanism == "gaussian":
        print("central noise: the server saw the exact sums and is trusted; both views are those of others")
    if privacy.epsilon is not None:
        print(f"budget: epsilon {privacy.epsilon:g} in the {privacy.view} view")
    if note := simulation(privacy):
        print(note)


@app.command()
def client(
    ledger: Annotated[Path, typer.Argument(help="A client's: RUN.clients/NAME/ledger.json or in agreement.ledgers.")],
    epsilon: Annotated[float | None, typer.Option(help="What was agreed to, to see what is left of it.")] = None,
    delta: Annotated[float, typer.Option(help="Of that epsilon.")] = 1e-5,
    rounds: Annotated[int | None, typer.Option(min=1, help="As --epsilon: most rounds over all runs.")] = None,
) -> None:
    """What a client has spent, in its run or over all runs, and what is left of its agreement.

    Example: `fedtalk privacy client ledgers/ana.json --epsilon 8 --rounds 40`
    """
    from fedtalk_ray.federation.privacy_plan import check_budget

    check_budget(epsilon, delta)
    if not ledger.is_file():
        raise RunError(f"{ledger} is no file; a client's is RUN.clients/NAME/ledger.json or in agreement.ledgers")
    tell_of_ledger(ledger, epsilon, delta, rounds)


def tell_of_ledger(ledger: Path, epsilon: float | None, delta: float, rounds: int | None) -> None:
    """Prints what a client has spent by its ledger, and what is left of an agreement. Raises `RunError` for a damaged
    one."""
    from collections import Counter

    from fedtalk_ray.privacy.client_ledger import ClientLedger
    from fedtalk_ray.privacy.protocol import Aborted

    try:
        spent = ClientLedger(ledger).read()
    except Aborted as error:
        raise RunError(str(error)) from error
    taken, reached = sum(spent.rounds.values()), spent.epsilon(delta)
    print(f"{ledger}: {taken} round{'' if taken == 1 else 's'}")
    for run, count in spent.rounds.items():
        print(f"  {count} in run {run}")
    kinds: Counter[tuple[str, float]] = Counter()
    for noise, count in spent.noise:
        kinds[noise.kind, noise.multiplier] += count
    for (kind, multiplier), count in kinds.items():
        word = ", which is the server's word" if kind == "gaussian" else ""
        print(f"  {count} with {kind} noise, multiplier {multiplier:g}{word}")
    if spent.bare:
        print(f"  {spent.bare} without noise")
    told = "infinite" if spent.bare else f"{reached:.3f}"
    print(f"epsilon so far: {told} at delta {delta:g} (the server view's)")
    if epsilon is not None:
        print(f"left of epsilon {epsilon:g}: {max(epsilon - reached, 0.0):.3f}")
    if rounds is not None:
        print(f"left of {rounds} rounds: {max(rounds - taken, 0)}")
