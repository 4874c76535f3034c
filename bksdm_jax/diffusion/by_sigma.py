"""Steps of Euler's and Heun's methods, DPM-Solver++ and UniPC, which go from noise level to noise level."""

from collections.abc import Iterator, Sequence

import numpy as np

from bksdm_jax.diffusion.forms import Form, Run, Step, units
from bksdm_jax.diffusion.spacing import levels, levels_above, timesteps


def _euler_levels(run: Run) -> tuple[np.ndarray, np.ndarray]:
    return levels(run.schedule, timesteps(run.schedule, run.steps, whole=False), run.steps)


def euler(run: Run) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 2 without its corrections and churn."""
    at, sigma = _euler_levels(run)
    (x,), _, start, _ = units(1)
    for i in range(run.begin, len(at)):
        after = x + (x - start) / sigma[i] * (sigma[i + 1] - sigma[i])
        yield Step(at[i], (1.0, sigma[i]), [after])


def euler_ancestral(run: Run) -> Iterator[Step]:
    """Euler's method to a lower noise level, then noise: DDPM's variance for a step of any length."""
    at, sigma = _euler_levels(run)
    (x,), _, start, noise = units(1)
    for i in range(run.begin, len(at)):
        here, there = sigma[i], sigma[i + 1]
        up = np.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = np.sqrt(there**2 - up**2)
        yield Step(at[i], (1.0, here), [x + (x - start) / here * (down - here) + up * noise])


def heun(run: Run) -> Iterator[Step]:
    """Karras et al. 2022, algorithm 2. Slots: latents, those before the step, the derivative there."""
    at, sigma = _euler_levels(run)
    (x, before, slope), _, start, _ = units(3)
    for i in range(run.begin, len(at)):
        here, there = sigma[i], sigma[i + 1]
        first = (x - start) / here
        yield Step(at[i], (1.0, here), [x + first * (there - here), x, first], i - run.begin)
        if i + 1 < len(at):
            mean = (slope + (x - start) / there) / 2
            after = before + mean * (there - here)
            yield Step(at[i + 1], (1.0, there), [after, before, slope], i - run.begin)


def _rates(sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal, deviation, and half log SNR lambda for levels `sigma`, each [N + 1]; lambda is inf at 0."""
    signal = 1 / np.hypot(sigma, 1)
    with np.errstate(divide="ignore"):
        return signal, sigma * signal, -np.log(sigma)


def dpmpp(run: Run) -> Iterator[Step]:
    """Lu et al. 2022 (DPM-Solver++), algorithm 2, and its variant with noise. Slots: latents, two past estimates."""
    solver = run.schedule.solver
    rounded = run.schedule.beta_schedule != "squaredcos_cap_v2"
    at, sigma = levels_above(run.schedule, run.steps, rounded, own_final=False)
    signal, deviation, lambdas = _rates(sigma)
    (x, *past), _, start, noise = units(3)
    stochastic, highest, last = solver.algorithm_type == "sde-dpmsolver++", int(solver.solver_order or 1), len(at) - 1
    lowers = bool(solver.lower_order_final) and len(at) < 15
    ends = solver.euler_at_final or lowers or solver.final_sigmas_type == "zero"
    for i in range(run.begin, last + 1):
        order = min(highest, i - run.begin + 1, 2 if lowers and i == last - 1 else 3)
        order = 1 if i == last and ends else order
        h, steps = lambdas[i + 1] - lambdas[i], lambdas[i : i - order : -1] if i >= order else lambdas[i::-1]
        h_exact = 2 * h if stochastic else h
        gain = -np.expm1(-h_exact)
        second, third = 1 - gain / h_exact, (gain - h_exact) / h_exact**2 + (-0.5 if stochastic else 0.5)
        second = gain / 2 if order == 2 and solver.solver_type == "midpoint" else second
        # Divided differences of the estimates over lambda, in units of h.
        known = [start, *past][:order]
        ratios = [(steps[j] - steps[j + 1]) / h for j in range(order - 1)]
        slopes = [(known[j] - known[j + 1]) / ratios[j] for j in range(order - 1)]
        change = gain * start
        if order == 2:
            change = change + second * slopes[0]
        elif order == 3:
            bend = (slopes[0] - slopes[1]) / (ratios[0] + ratios[1])
            change = change + second * (slopes[0] + ratios[0] * bend) + third * bend
        after = deviation[i + 1] / deviation[i] * (np.exp(-h) if stochastic else 1.0) * x + signal[i + 1] * change
        if stochastic:
            after = after + deviation[i + 1] * np.sqrt(max(-np.expm1(-2 * h), 0.0)) * noise
        yield Step(at[i], (signal[i], deviation[i]), [after, start, past[0]])


def unipc(run: Run) -> Iterator[Step]:
    """Zhao et al. 2023, algorithms 5 to 8 (B of type bh1 or bh2). Slots: latents, corrected latents before the last
    step, the estimates of z_0 before it, newest first.
    """
    solver = run.schedule.solver
    at, sigma = levels_above(run.schedule, run.steps, rounded=True, own_final=True)
    signal, deviation, lambdas = _rates(sigma)
    highest = int(solver.solver_order or 1)
    (x, before, *past), _, start, _ = units(2 + highest)

    def moved(source: Form, to: int, estimates: Sequence[Form], order: int, newest: Form | None) -> Form:
        """From level to - 1 to `to`, by the estimates of z_0 from to - 1 down and, to correct, that at `to`."""
        h = lambdas[to] - lambdas[to - 1]
        slopes, places = [], []
        for j in range(1, order):
            places.append((lambdas[to - 1 - j] - lambdas[to - 1]) / h)
            slopes.append((estimates[j] - estimates[0]) / places[-1])
        grows = -h if solver.solver_type == "bh1" else np.expm1(-h)
        if newest is not None:
            places, slopes = [*places, 1.0], [*slopes, newest - estimates[0]]
        result = deviation[to] / deviation[to - 1] * source - signal[to] * np.expm1(-h) * estimates[0]
        simple = len(slopes) == 1 and (newest is None or order == 1)
        shares = [0.5] if simple else _shares(places, -h, grows)
        for share, slope in zip(shares, slopes, strict=True):
            result = result - signal[to] * grows * share * slope
        return result

    order = 1
    for i in range(run.begin, len(at)):
        corrects = i > run.begin and (i - 1) not in (solver.disable_corrector or ())
        here = moved(before, i, past, order, start) if corrects else x
        left = len(at) - i if solver.lower_order_final else highest
        order = min(highest, left, i - run.begin + 1)
        after = moved(here, i + 1, [start, *past], order, None)
        yield Step(at[i], (signal[i], deviation[i]), [after, here, start, *past[: highest - 1]])


def _shares(places: Sequence[float], h: float, grows: float) -> np.ndarray:
    """The weights of UniPC's differences (equation 3 of the paper), for `places` on the scale of the step `h`."""
    if not places:
        return np.zeros(0)
    count, value, factorial, wanted = len(places), np.expm1(h) / h - 1, 1, []
    for k in range(1, count + 1):
        wanted.append(value * factorial / grows)
        factorial *= k + 1
        value = value / h - 1 / factorial
    return np.linalg.solve(np.vander(places, count, increasing=True).T, wanted)
