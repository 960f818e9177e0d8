"""The fault matrix as a page of the documentation, and as a table on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from faulty_fleet import AGENTS
from fleet_faults import DISK_MB, FAULTS, PHASES, SEES_FULL_DISK_S, Phase
from matrix import FAULT_ROUND, TRAIN_S, Outcome

# What a fault may cost: a quorum round's extra seconds, or seconds from the restart on until the
# coordinator has answered everybody.
ROUND_MAX_S = {"kill-agent": 2.0}
RECOVERED_MAX_S = {"kill-coordinator": 5.0, "kill-broker": 10.0}


@dataclass(frozen=True)
class Cell:
    """One fault in one phase, or why it was not injected."""

    fault: str
    phase: Phase
    skipped: str = ""  # why it was not played
    failed: str = ""  # why the run did not end
    extra_s: float = 0.0
    round_extra_s: float = 0.0
    outcome: Outcome | None = None

    @property
    def holds(self) -> bool:
        """Nothing lost, nothing twice, every model that of its contributions."""
        if self.outcome is None:
            return not self.failed
        verdict = self.outcome.verdict
        return verdict.equal and not verdict.lost and not verdict.twice

    @property
    def in_time(self) -> bool:
        """Whether the issue's own figures were kept, for the faults that have one."""
        if self.outcome is None:
            return True
        recovered_s = self.outcome.recovered_s or 0.0
        return self.round_extra_s <= ROUND_MAX_S.get(
            self.fault, float("inf")
        ) and recovered_s <= RECOVERED_MAX_S.get(self.fault, float("inf"))


@dataclass(frozen=True)
class Figures:
    """All that was measured."""

    cells: Sequence[Cell]
    run_s: Mapping[Phase, float]  # undisturbed, from each phase on to the end
    machine: str
    seconds: float
    jobs: int


def row(cell: Cell) -> tuple[str, ...]:
    title = FAULTS[cell.fault].title
    if cell.outcome is None:
        why = f"failed: {cell.failed}" if cell.failed else cell.skipped
        return (title, cell.phase, "", "", "", "", "", "", why)
    outcome, verdict = cell.outcome, cell.outcome.verdict
    recovered = "" if outcome.recovered_s is None else f"{outcome.recovered_s:.1f}"
    note = outcome.note if cell.in_time else f"over its limit; {outcome.note}".rstrip("; ")
    return (
        title,
        cell.phase,
        f"{cell.extra_s:.1f}",
        f"{cell.round_extra_s:.1f}",
        recovered,
        str(len(verdict.lost)),
        str(len(verdict.twice)),
        f"{verdict.contributions}",
        ("yes" if verdict.equal else "NO") + (f"; {note}" if note else ""),
    )


HEAD = ("fault", "phase", "extra s", "round s", "back s", "lost", "twice", "in", "equal; note")


def table(cells: Sequence[Cell]) -> str:
    """For a terminal."""
    rows = [HEAD, *map(row, cells)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if 2 <= i <= 7 else text.ljust(width)
            for i, (text, width) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    )


def page(figures: Figures) -> str:
    """docs/explanation/faults.md."""
    played = [cell for cell in figures.cells if cell.outcome is not None]
    lost = sum(len(cell.outcome.verdict.lost) for cell in played if cell.outcome)
    twice = sum(len(cell.outcome.verdict.twice) for cell in played if cell.outcome)
    unequal = sum(not cell.outcome.verdict.equal for cell in played if cell.outcome)
    rows = [HEAD, ("---", "---", *["---:"] * 6, "---"), *map(row, figures.cells)]
    lines = "\n".join(f"| {' | '.join(r)} |" for r in rows)
    again = (
        f"python benchmarks/faults.py --jobs {figures.jobs} --markdown docs/explanation/faults.md"
    )
    usual = ", ".join(f"{phase} {figures.run_s[phase]:.1f}" for phase in PHASES)
    return f"""# The fault matrix

What a fault costs, struck in each phase of a round, and whether it bends the run. Written by
`{again}`; do not edit it by hand.

{len(played)} cells were played. Contributions lost: {lost}; counted twice: {twice}; runs whose models
differ from those of the same contributions without the fault: {unequal}; runs that did not end:
{sum(bool(cell.failed) for cell in figures.cells)}; figures over their limit:
{sum(not cell.in_time for cell in figures.cells)}.

{lines}

## What the columns mean

- **extra s**: seconds from the strike to the end of the run, less those of an undisturbed run from
  the same moment (medians: {usual} s).
  Includes the fault's own length. An idle fleet is struck while it waits for its last device, and
  the clock runs from that device's start: after a fault that is over by itself (killed and
  restarted, cut and mended), else with it.
- **round s**: the same for the round that was struck alone.
- **back s**: from the restart, the mended link or the freed disk until the coordinator has
  answered the hello of everybody who was struck; empty where the run ended before, or nobody had
  to come back.
- **lost**: contributions that the coordinator said `kept` to and that are in no model.
- **twice**: contributions that count more than once in a model.
- **in**: contributions in the run's models. {len(AGENTS) * 3} is everybody's in every round; fewer
  where a device was away for longer than `grace_s` while a quorum was there.
- **equal**: whether every round's model and the model file are, byte for byte, what a faultless
  sum of the same contributions gives.

A figure may be below zero by what two runs differ in anyhow, a few tenths of a second.

Limits: a killed agent may cost its round {ROUND_MAX_S["kill-agent"]:g} s (round s), a killed
coordinator is back within {RECOVERED_MAX_S["kill-coordinator"]:g} s of its restart and a killed
broker within {RECOVERED_MAX_S["kill-broker"]:g} s (back s).

## How it is made

- Every cell is a run of its own of 3 rounds: `fedclip-edge serve`, {len(AGENTS)} agents, and mosquitto
  with the configuration that ships and certificates of `broker init` and `enroll`; all are
  processes with their own files. Model and updates are of 525,312 parameters, fp32 both ways.
- The agents are `agent/process.py` itself, but their features are ready and their training is a wait of
  {TRAIN_S:g} s with an update that is a function of model and device. So each model can be worked out
  anew from the one before: how often each device counts is found by trying, not by asking the journal.
- All clients come through a link that ends the encryption on both sides and reads MQTT. A fault
  strikes in round {FAULT_ROUND}, at the fifth chunk of the victim's download or upload, when the victim
  logs that it trains, and for the aggregation when the last `kept` of the round leaves the coordinator.
- `quorum = 0.6`, `grace_s = 20`; where an agent is killed `grace_s = 1`, and it is started again once
  its round is closed. Coordinator and broker are started again at once.
- Link cut: everybody's connection, the coordinator's too. The others are of the victim's link, both
  ways: slow until the round is closed, so in its aggregation for no longer than that takes; every
  third chunk duplicated, or altered in one bit, to the end of the run.
- Full disk: a {DISK_MB} MB tmpfs, filled to the last page, until the process ends or for
  {SEES_FULL_DISK_S:g} s; then it is free again and what has ended is started again.
- Clocks: the coordinator's jumps an hour ahead, the victim's an hour back.

Machine: {figures.machine};
{figures.jobs} runs at a time, {figures.seconds / 60:.0f} minutes in all.
"""
