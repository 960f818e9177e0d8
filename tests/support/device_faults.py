"""Everyday faults of one device: it comes and goes, falls silent, floods, or sends bad updates.

The other devices need nothing from this device, so none of these faults may hold up a run for long.
"""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass

from faulty_fleet import AGENTS, COORDINATOR, HEAVY_FILE, PLACES, VICTIM, Fleet
from fleet_faults import Aftermath, Fault, Injection, recovery_s

FLOODER, VISITOR = "flooder", "visitor"
AWAY_S = 1.0
VISITOR_AWAY_S = 5.0
HERE_S = 1.0  # after the answer to the hello
FLOOD_S = 6.0


@dataclass(frozen=True)
class Flap(Fault):
    """Cut the victim's link for AWAY_S, again and again, until the run ends."""

    def inject(self, fleet: Fleet) -> None:
        fleet.link.cut(VICTIM)

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        times, longest_s = 1, None
        while True:
            time.sleep(AWAY_S)
            mended_at = time.monotonic()
            fleet.link.mend(VICTIM)
            recovered_s = recovery_s(fleet, mended_at, VICTIM)
            if recovered_s is not None:
                longest_s = max(recovered_s, longest_s or 0.0)
                time.sleep(HERE_S)
            if fleet.done_at() is not None:
                return Aftermath(longest_s, f"cut {times} times")
            fleet.link.cut(VICTIM)
            times += 1


@dataclass(frozen=True)
class Visitor(Fault):
    """Kill a device that only evaluates, and start it VISITOR_AWAY_S later, until the run ends."""

    def begin(self, fleet: Fleet) -> None:
        fleet.start(VISITOR)
        fleet.wait(lambda: fleet.answered_at(VISITOR, 0.0) is not None, "the evaluator to be there")

    def inject(self, fleet: Fleet) -> None:
        fleet.processes[VISITOR].kill()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        times, longest_s = 1, None
        while True:
            fleet.processes[VISITOR].wait()
            time.sleep(VISITOR_AWAY_S)
            started_at = time.monotonic()
            fleet.start(VISITOR)
            recovered_s = recovery_s(fleet, started_at, VISITOR)
            if recovered_s is not None:
                longest_s = max(recovered_s, longest_s or 0.0)
                time.sleep(HERE_S)
            if fleet.done_at() is not None:
                return Aftermath(longest_s, f"killed {times} times")
            fleet.processes[VISITOR].kill()
            times += 1


@dataclass(frozen=True)
class Stop(Fault):
    """Stop the victim with SIGSTOP until it has missed a deadline; then continue it."""

    def inject(self, fleet: Fleet) -> None:
        fleet.processes[VICTIM].send_signal(signal.SIGSTOP)

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        def missed() -> list[str]:
            return [
                event["reason"]
                for event in fleet.events(COORDINATOR, "missed")
                if event["device"] == VICTIM and event["round"] >= injection.round
            ]

        fleet.wait(lambda: bool(missed()) or fleet.done_at() is not None, "the deadline")
        continued_at = time.monotonic()
        fleet.processes[VICTIM].send_signal(signal.SIGCONT)
        recovered_s = recovery_s(fleet, continued_at, VICTIM)
        note = f"missed {len(missed())} deadline{'s' if len(missed()) > 1 else ''}"
        return Aftermath(recovered_s, note if missed() else "the run ended before the deadline")


@dataclass(frozen=True)
class Flood(Fault):
    """Send hellos from another enrolled device for FLOOD_S, as many as the broker takes."""

    def begin(self, fleet: Fleet) -> None:
        config = fleet.folder / FLOODER / "agent.toml"
        arguments = [config, fleet.secured.port, FLOOD_S, fleet.home(FLOODER) / "go"]
        command = [sys.executable, PLACES / "flooder.py", *arguments]
        log = fleet.folder / f"{FLOODER}.log"
        fleet.processes[FLOODER] = fleet.children.start(list(map(str, command)), log)
        fleet.wait(lambda: fleet.answered_at(FLOODER, 0.0) is not None, "the flooder to be there")

    def inject(self, fleet: Fleet) -> None:
        (fleet.home(FLOODER) / "go").touch()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        def is_muted() -> bool:
            return bool(fleet.events(COORDINATOR, "device_muted"))

        fleet.wait(
            lambda: is_muted() or fleet.done_at() is not None,
            "the flooder to be muted",
            FLOOD_S * 10,
        )
        if not is_muted():
            return Aftermath(note="the run ended before the device was muted")
        # The coordinator makes a new link, and each device says hello again.
        return Aftermath(recovery_s(fleet, injection.at, *AGENTS), "the device was muted")


@dataclass(frozen=True)
class HeavyUpdates(Fault):
    """Make the victim train updates with a weight that the plan forbids, until the run ends."""

    def inject(self, fleet: Fleet) -> None:
        (fleet.home(VICTIM) / HEAVY_FILE).touch()

    def over(self, fleet: Fleet, injection: Injection) -> Aftermath:
        fleet.wait(lambda: fleet.done_at() is not None, "the end of the run")
        missed = [e for e in fleet.events(COORDINATOR, "missed") if e["device"] == VICTIM]
        left_out = [e["round"] for e in missed if e["left_out"]]
        refused = sum(e["reason"] == "refused" for e in missed)
        note = f"refused in {refused} attempts"
        return Aftermath(note=f"{note}, then left out" if left_out else note)
