"""The same rounds in forty lines of Ray, by hand: one chunk of clients per actor, one sum back, no server, no state.

python -m jobs.benchmarks.rounds.hand_made --clients 8 --rounds 11 --workers 2 --out hand.json
"""

import numpy as np
import ray

from jobs.benchmarks.rounds.measure import Meter, options, write


@ray.remote
class Worker:
    def __init__(self) -> None:
        from jobs.benchmarks.rounds.work import local_update

        self._update = local_update

    def fit(self, clients: list[int], round_number: int, vector: np.ndarray) -> np.ndarray:
        total = np.zeros_like(vector)
        for client in clients:
            total += self._update(vector, client, round_number)
        return total


def main() -> None:
    from jobs.benchmarks.rounds.work import initial_vector

    chosen = options()
    meter = Meter()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    workers = [Worker.remote() for _ in range(chosen.workers)]  # type: ignore[attr-defined]
    vector, cohort = initial_vector(), list(range(chosen.clients))
    for round_number in range(chosen.rounds):
        shared = ray.put(vector)
        sums = [w.fit.remote(cohort[k :: len(workers)], round_number, shared) for k, w in enumerate(workers)]
        vector = vector + sum(ray.get(sums)) / np.float32(len(cohort))
        meter.lap()
    write("hand-made Ray", chosen, meter, vector, [cohort] * chosen.rounds, meter.memory())


if __name__ == "__main__":
    main()
