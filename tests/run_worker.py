"""What two ranks do for tests/report/test_run.py."""

import torch

from frechet.report._run import Run
from frechet.space import Group


def message(work):
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(rank, folder):
    """A report's run whose clock is far ahead on rank 1, one that is interrupted there, and what goes on from it."""
    group, weights, cpu = Group.of("world"), {"a": 1.0, "b": 1.0}, torch.device("cpu")
    file = folder / "unfinished"
    run = Run(cpu, weights, file, "mine", seconds=100.0, group=group)
    run.began -= 1000.0 * rank
    run.meter.times["before"] = [(10, 10.0)]
    found = {"allowance": run.allowance("a")}
    found["early"] = run.stage("a", lambda observe, _resume: observe(torch.zeros(1)))
    run.began -= 1000.0 * (1 - rank)
    found["late"] = run.stage("b", lambda observe, _resume: observe(torch.zeros(1)))

    def work(observe, _resume):
        for i in range(3):
            if i == rank == 1:
                found["asked"] = (run.interrupt(), run.interrupt())
            observe(torch.tensor(float(i)))

    run = Run(cpu, weights, file, "mine", group=group)
    run.stage("a", lambda _observe, _resume: 7)
    try:
        run.stage("b", work)
    except KeyboardInterrupt:
        found["interrupted"] = True
    later = Run(cpu, weights, file, "mine", group=group)
    found["resumed"] = (later.load(), later.results, float(later.partial["b"]["state"]))
    found["other"] = message(Run(cpu, weights, file, "other", group=group).load)
    nowhere = Run(cpu, weights, folder / "missing" / "unfinished", "mine", group=group)
    found["unwritable"] = message(lambda: nowhere.stage("a", lambda _observe, _resume: 7))
    found["told"] = [x.what for x in nowhere.left_out]
    return found
