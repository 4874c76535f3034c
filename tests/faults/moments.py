"""Random moments in the life of a training process."""

import random
import time

from tests.faults.training import Training, Victim

COMPILING, COMPILED = "compiling the update ...", "compiling the update: "


class Moments:
    """Waits for moments of a kind; how long each kind lasts is learnt from the victims that live through it."""

    def __init__(self, training: Training, choices: random.Random) -> None:
        self._training, self._choices = training, choices
        self._lasts = {"starting": 10.0, "compiling": 5.0, "saving": 0.3}

    def wait(self, kind: str, victim: Victim) -> None:
        """Returns at a random moment of that kind: starting, compiling, training, saving, or `NAME at step`."""
        begin, training = time.monotonic(), self._training
        first = training.newest()
        if kind == "starting":
            time.sleep(self._part(kind))
            return
        victim.until_said(COMPILING)
        self._lasts["starting"], begin = time.monotonic() - begin, time.monotonic()
        if kind == "compiling":
            time.sleep(self._part(kind))
            return
        victim.until(lambda: COMPILED in victim.said() or f"step {first + 1}:" in victim.said())
        self._lasts["compiling"] = time.monotonic() - begin
        if kind == "training":
            more = self._choices.randint(1, 12)
            victim.until(lambda: f"step {first + more}:" in victim.said())
            time.sleep(self._choices.uniform(0, 0.05))
        elif kind == "saving":
            for _ in range(self._choices.randint(1, 2)):
                victim.until(training.unfinished)
                begin, step = time.monotonic(), training.unfinished()
                if self._choices.random() < 0.5:
                    break
                victim.until(lambda step=step: training.unfinished() != step)
                self._lasts["saving"] = time.monotonic() - begin
            else:
                victim.until(training.unfinished)
            time.sleep(self._part(kind))
        else:
            victim.until_said(f"{kind} ", self._choices.randint(1, 2))
            time.sleep(self._choices.choice([0.0, self._choices.uniform(0, 1), self._choices.uniform(0, 5)]))

    def _part(self, kind: str) -> float:
        return self._choices.uniform(0, self._lasts[kind])
