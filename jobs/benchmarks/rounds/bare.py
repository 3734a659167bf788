"""The baseline: one process, one loop, no framework.

python -m jobs.benchmarks.rounds.bare --clients 8 --rounds 11 --out bare.json
"""

from jobs.benchmarks.rounds.measure import Meter, options, write
from jobs.benchmarks.rounds.work import initial_vector, one_round


def main() -> None:
    chosen = options()
    cohort = list(range(chosen.clients))
    vector, meter = initial_vector(), Meter()
    for round_number in range(chosen.rounds):
        vector = one_round(vector, cohort, round_number)
        meter.lap()
    write("bare", chosen, meter, vector, [cohort] * chosen.rounds, meter.memory())


if __name__ == "__main__":
    main()
