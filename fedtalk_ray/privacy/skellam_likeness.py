"""How little fine Skellam noise differs from Gaussian noise of its variance, and so what sampled rounds of it cost.

Guarantee: whatever is done to n independent values of Skellam noise of variance v, by whomever, in however many
adaptive rounds and with whatever else is random, an event has, but for `FAILURE`, at most e^tau times the probability
that it has if the values were Gaussian ones of variance v, rounded to integers, and at least e^-tau times it; tau is
`log_ratio`. A rounded Gaussian value is made from a Gaussian one, and sums of integers come through rounding unchanged.
So what is (epsilon, delta)-private with Gaussian noise is (epsilon + 2 tau, delta + ...) private with Skellam noise
(`accounting.epsilon`), with no loss by sampling.

Why. Let s(k) be Skellam's probabilities, g(k) the rounded Gaussian's, x = k / sqrt(v) and r = log s - log g.

1. s(k) = e^-v I_k(v), and for a = j + 1/2 the ratio I_{j+1}(v) / I_j(v) lies between v / (a + sqrt(v^2 + (a + 1)^2))
   and v / (a + sqrt(v^2 + a^2)) (Amos 1974, Segura 2011). The product of the latter for j < k is
   exp(-sum asinh(a / v)); so log s(k) - log s(0) + x^2 / 2 lies between -(x^2 + |x| / sqrt(v)) / (2 v) and
   x^4 / (24 v).
2. sqrt(2 pi v) s(0) lies between 1 and 1 + 1 / (4 v), and rounding changes a Gaussian density by a factor between
   exp(-1 / (8 v)) and exp(x^2 / (24 v)).
3. Together |r| <= b(x) / v with b(x) = x^4 / 24 + 0.6 x^2 + 1/2, whose square has a mean below 4 under either noise.
4. As both sum to one, the mean of r, where |x| <= X, is nearer to 0 than 4 / v^2 and what lies beyond X; the sum of n
   of them stays within what Bernstein's inequality says for variances of 4 / v^2 and values of at most b(X) / v.
"""

import math

LEAST_VARIANCE = 1e4
"""From which the constants above hold."""

LOG_FAILURE = -120.0
FAILURE = 4 * math.exp(LOG_FAILURE)
"""Probability, under either noise, that the ratio is larger, over all values together."""


def log_ratio(variance: float, values: float) -> float:
    """tau, for so many values of Skellam noise of this variance in steps squared; infinite below `LEAST_VARIANCE`.

    >>> log_ratio(2.0**36, 10**6) < 2e-5
    True
    >>> log_ratio(100.0, 1)
    inf
    """
    if variance < LEAST_VARIANCE:
        return math.inf
    # Beyond X lies, of both noises and over all values, no more than exp(LOG_FAILURE): Chernoff's bound is below
    # 2 exp(-0.49 X^2) as long as X^2 is small beside 12 v.
    far = math.sqrt((math.log(4 * values) - LOG_FAILURE) / 0.49)
    if far**2 > 0.1 * variance:
        return math.inf
    most = (far**4 / 24 + 0.6 * far**2 + 0.5) / variance
    spread = math.sqrt(8 * values * -LOG_FAILURE) / variance
    return values * 4 / variance**2 + math.exp(LOG_FAILURE) + spread + 4 * most * -LOG_FAILURE / 3
