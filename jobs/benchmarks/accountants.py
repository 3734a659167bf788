"""What accountants say of the same rounds: ours beside Google's PLD and the bounds by Renyi divergence.

python jobs/benchmarks/accountants.py

Needs the package dp-accounting (in the extra `dev`).
"""

from dp_accounting import dp_event, pld

from fedtalk_ray.privacy.accounting import Noise, Rounds, epsilon, epsilon_bound

CASES = [(1.0, 0.01, 1000), (1.31, 0.25, 48), (2.08, 1.0, 12), (0.7, 0.01, 10)]
"""Noise multiplier, sampling rate, rounds."""

DELTA = 1e-5


def main() -> None:
    print(
        "| noise multiplier | rate | rounds | PLD "
        "| Gaussian | Skellam | 2^14 steps | Renyi, Gaussian | Renyi, Skellam |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for multiplier, rate, rounds in CASES:
        gaussian, skellam = ([Rounds(Noise(kind, multiplier), rate, rounds)] for kind in ("gaussian", "skellam"))
        accountant = pld.PLDAccountant()
        accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(multiplier)), rounds)
        coarse = [Rounds(Noise("skellam", multiplier, 2.0**14), rate, rounds)]
        figures = [
            accountant.get_epsilon(DELTA),
            epsilon(gaussian, DELTA),
            epsilon(skellam, DELTA),
            epsilon(coarse, DELTA),
            epsilon_bound(gaussian, DELTA),
            epsilon_bound(skellam, DELTA),
        ]
        print(f"| {multiplier:g} | {rate:g} | {rounds} | " + " | ".join(f"{value:.3f}" for value in figures) + " |")


if __name__ == "__main__":
    main()
