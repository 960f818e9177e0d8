"""The fault matrix as a page of the manual, and as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from device_faults import AWAY_S, FLOOD_S, HERE_S, VISITOR_AWAY_S
from fault_table import FAULTS
from faulty_fleet import AGENTS, OTHERS
from fleet_faults import DISK_MB, MANY_ROUNDS, PHASES, ROUNDS, SEES_FULL_DISK_S, Phase
from matrix import FAULT_ROUND, TRAIN_S, Outcome

# Limits: the extra seconds of a round and of the run, and the seconds from the restart until the
# coordinator has answered every device that is waited for.
STOP_MAX_S = 10.0  # the deadline of its rounds
EVERYDAY_MAX_S = 10.0
_EVERYDAY = dict.fromkeys(("flap", "flood", "refused", "evaluator"), EVERYDAY_MAX_S)
ROUND_MAX_S = {"kill-agent": 2.0, "stop-agent": STOP_MAX_S}
RUN_MAX_S = {"stop-agent": STOP_MAX_S, **_EVERYDAY}
RECOVERED_MAX_S = {"kill-coordinator": 5.0, "kill-broker": 10.0}


@dataclass(frozen=True)
class Cell:
    """One fault in one phase: its figures, or the reason why there are none."""

    fault: str
    phase: Phase
    skipped: str = ""  # the reason why it was not run
    failed: str = ""  # the error of a run that did not end
    extra_s: float = 0.0
    round_extra_s: float = 0.0
    outcome: Outcome | None = None

    @property
    def holds(self) -> bool:
        """True if nothing was lost or counted twice, and every model is as it should be."""
        if self.outcome is None:
            return not self.failed
        verdict = self.outcome.verdict
        return verdict.equal and not verdict.lost and not verdict.twice

    @property
    def in_time(self) -> bool:
        """True if the fault has no limit, or its figures are within it."""
        if self.outcome is None:
            return True
        measured = (
            (ROUND_MAX_S, self.round_extra_s),
            (RUN_MAX_S, self.extra_s),
            (RECOVERED_MAX_S, self.outcome.recovered_s or 0.0),
        )
        return all(value <= limits.get(self.fault, math.inf) for limits, value in measured)


@dataclass(frozen=True)
class Figures:
    """The figures of all cells, and the circumstances in which they were measured."""

    cells: Sequence[Cell]
    # Without a fault, from each phase to the end of the run; by the number of rounds.
    run_s: Mapping[int, Mapping[Phase, float]]
    machine: str
    seconds: float
    jobs: int


HEAD = (
    "fault",
    "injected in",
    "run longer by, s",
    "round longer by, s",
    "answered after, s",
    "lost",
    "counted twice",
    "contributions",
    "models equal",
    "note",
)
_FIRST_FIGURE, _LAST_FIGURE = 2, 7  # columns of HEAD


def row(cell: Cell) -> tuple[str, ...]:
    """Write the cells of one row, in the order of HEAD."""
    title = FAULTS[cell.fault].title
    if cell.outcome is None:
        why = f"failed: {cell.failed}" if cell.failed else cell.skipped
        return (title, cell.phase, "", "", "", "", "", "", "", why)
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
        f"{verdict.contributions} of {len(AGENTS) * _exchanges(cell)}",
        "yes" if verdict.equal else "NO",
        note,
    )


def _exchanges(cell: Cell) -> int:
    """Return the number of rounds of the run, with the vote if the fault is in it."""
    return FAULTS[cell.fault].rounds + (cell.phase == "vote")


def table(cells: Sequence[Cell]) -> str:
    """Write the table for a terminal."""
    rows = [HEAD, *map(row, cells)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(
            text.rjust(width) if _FIRST_FIGURE <= i <= _LAST_FIGURE else text.ljust(width)
            for i, (text, width) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    )


def page(figures: Figures) -> str:
    """Write docs/explanation/faults.md."""
    played = [cell for cell in figures.cells if cell.outcome is not None]
    lost = sum(len(cell.outcome.verdict.lost) for cell in played if cell.outcome)
    twice = sum(len(cell.outcome.verdict.twice) for cell in played if cell.outcome)
    unequal = sum(not cell.outcome.verdict.equal for cell in played if cell.outcome)
    failed = sum(bool(cell.failed) for cell in figures.cells)
    slow = sum(not cell.in_time for cell in figures.cells)
    figures_between = _LAST_FIGURE - _FIRST_FIGURE + 1
    rows = [HEAD, ("---", "---", *["---:"] * figures_between, "---", "---")]
    rows += map(row, figures.cells)
    lines = "\n".join(f"| {' | '.join(r)} |" for r in rows)
    again = (
        f"python benchmarks/faults.py --jobs {figures.jobs} --markdown docs/explanation/faults.md"
    )
    usual = ";\n".join(
        f"  with {rounds} rounds: " + ", ".join(f"{phase} {run_s[phase]:.1f}" for phase in PHASES)
        for rounds, run_s in figures.run_s.items()
    )
    return f"""# Faults

This page shows what a fault costs a run, for each kind of fault and each phase of a round. It is
generated: do not edit it by hand. This command repeats the measurements and writes the page:

```sh
{again}
```

| result over all cells | count |
|---|---:|
| cells run (one fault in one phase each) | {len(played)} |
| contributions lost | {lost} |
| contributions counted twice | {twice} |
| runs whose models differ from a faultless sum of the same contributions | {unequal} |
| runs that did not end | {failed} |
| cells over their limit | {slow} |

## How to read the table

Each row is a run of its own, with one fault in one phase of a round.

- **fault**: what went wrong. **injected in**: the phase of the round at that moment.
- **run longer by, s**: seconds from the fault to the end of the run, minus the same time in a run
  without a fault. The duration of the fault itself is included. Medians of the runs without a
  fault, in seconds:
{usual}.
- **round longer by, s**: the same for the round in which the fault was injected.
- **answered after, s**: seconds from the restart, the repaired connection or the freed disk until
  the coordinator has answered the hello of every process that was affected. After a flood, seconds
  from its start; with several absences, those of the longest wait. Empty if the run ended first, or
  if no process had to reconnect.
- **lost**: contributions that the coordinator acknowledged (`kept`) and that are in no model.
- **counted twice**: contributions that are in a model more than once.
- **contributions**: contributions in the models of the run, and answers in its vote, of those of
  every device in every round. There are fewer if a device was away for longer than `grace_s`, or
  repeatedly, missed a deadline, or was refused, and the others formed a quorum. That is allowed.
- **models equal**: "yes" if the model of every round and the model file are, byte for byte, those
  of a faultless sum of the same contributions.
- **note**: other events, or the reason why a cell was not run.

In the phase "idle" the fleet waits for its last device, and the time is measured from the start of
that device. A killed process is running again by then, and connections cut for 5 or 60 s
are restored. Every other fault is still present when the device starts.

In the phase "vote" the run ends with a vote of the devices, which is then the "round" of the table;
the other runs have none. Without a quorum the vote counts no answer, and its result is the model
that is taken without a vote.

A figure can be below zero: the durations of two runs differ by chance.

**Limits**:

- a killed agent makes its round at most {ROUND_MAX_S["kill-agent"]:g} s longer;
- every device is answered within {RECOVERED_MAX_S["kill-coordinator"]:g} s of the restart of a killed coordinator;
- every device is answered within {RECOVERED_MAX_S["kill-broker"]:g} s of the restart of a killed broker;
- a stopped agent makes its round and the run at most {STOP_MAX_S:g} s longer, which is one deadline;
- a device that comes and goes, floods, or sends refused updates makes the whole run at most {EVERYDAY_MAX_S:g} s
  longer.

## The table

{lines}

## How it is measured

- Every cell is a run of its own with {ROUNDS} rounds: `fedclip-edge serve`, {len(AGENTS)} agents, and mosquitto
  with the configuration that ships and certificates of `broker init` and `enroll`. All are separate
  processes with their own files. Model and updates have 525,312 parameters, in fp32 both ways.
- The agents run `agent/process.py`, but their features are ready, and their training is a wait of
  {TRAIN_S:g} s with an update that is computed from the model and the device's name. So each model can be
  computed again from the one before it. How often each device counts in a model is found by trying
  out the possible numbers, not by reading the journal.
- Every connection goes through a proxy that ends the encryption on both sides and reads MQTT. The
  fault is injected in round {FAULT_ROUND}: in "download" and "upload" at the fifth chunk of the agent, in
  "training" when the agent logs that it trains, in "aggregation" when the last `kept` of the round
  leaves the coordinator. In "vote" it is injected when the agent logs that it votes.
- `quorum = 0.6` and `grace_s = 20`. Where an agent is killed, `grace_s = 1`, and the agent is
  started again when its round is closed. Coordinator and broker are started again at once.
- **The vote** is the real one, over 10, 30 and 90 drawn features of the agents. The number of
  pictures that the coordinator logs says which answers it has counted, and how often. The model of
  these answers is computed again.
- **Two agents that do not vote**: {len(OTHERS)} of {len(AGENTS)} agents hold their answers back until the deadline, with
  `deadline_s = {FAULTS["no-quorum"].rules.deadline_s:g}`.
- **Connections cut**: those of all agents and of the coordinator.
- **80 kB/s**: the connection of one agent, both ways, until the round is closed. In the phase
  "aggregation" the round closes soon after.
- **Duplicated or corrupted chunks**: every third chunk of one agent, both ways, until the end of
  the run. A corrupted chunk has one bit changed.
- **Full disk**: a tmpfs of {DISK_MB} MB, filled completely until the process ends, or for {SEES_FULL_DISK_S:g} s. Then it
  is freed, and a process that ended is started again.
- **Clocks**: the coordinator's clock jumps one hour ahead, the clock of one agent one hour back.
- **Link cut again and again**: the connection of one agent, in a run of {MANY_ROUNDS} rounds. It is cut for
  {AWAY_S:g} s, and again {HERE_S:g} s after the coordinator has answered, until the run ends.
- **Agent stopped**: with SIGSTOP and `deadline_s = {FAULTS["stop-agent"].rules.deadline_s:g}`, until the coordinator logs that it missed
  a deadline, then SIGCONT. It never leaves the broker, so the round waits for its deadline.
- **Flood of hellos**: a fourth enrolled device repeats one signed hello with QoS 0 for {FLOOD_S:g} s, as
  fast as the broker takes it, in a run of {MANY_ROUNDS} rounds. It does not use the proxy. The coordinator
  mutes it, and all others say hello again.
- **Updates refused**: every update of one agent has a weight above `max_weight`. Here
  `quorum = {FAULTS["refused"].rules.quorum:g}`, so that a round needs all {len(AGENTS)} agents until the coordinator leaves that one out.
- **Evaluator killed again and again**: a fourth device that only evaluates, in a run of {MANY_ROUNDS}
  rounds. It is started {VISITOR_AWAY_S:g} s after it was killed, and killed {HERE_S:g} s after the coordinator has answered.
  No round waits for it. The end of the run waits for its report on the last model, at most for
  `grace_s`.

Machine: {figures.machine};
{figures.jobs} runs at a time, {figures.seconds / 60:.0f} minutes in all.
"""
