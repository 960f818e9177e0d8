"""State of an open run: its model, the open round's sum, and both of them in the journal.

Laws: a contribution is on disk before it is in the sum; a closed round's model is on disk before
anybody hears of it; a run is finished only once its model file is written; whatever is killed,
`open_run_state` comes back to the same model, byte for byte, and to a sum of the same
contributions.
A round's sum is added to the model in float32, the master; devices get it as the plan's
`codec_down` gives it, and what they send is relative to that.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path

import safetensors.numpy

from fedclip_edge import model_file
from fedclip_edge.config import FleetConfig
from fedclip_edge.coordinator.journal import Journal
from fedclip_edge.coordinator.journal_tables import Run, StoredModel
from fedclip_edge.errors import ConfigError, JournalError, PeerError
from fedclip_edge.learning import methods, strategies
from fedclip_edge.learning.strategy import Total
from fedclip_edge.protocol import wire
from fedclip_edge.protocol.messages import Blob
from fedclip_edge.records import (
    Arrays,
    ClassTexts,
    Codec,
    Contribution,
    Layout,
    Model,
    Plan,
    Shapes,
    in_order,
)

MASTER_CODEC: Codec = "fp32"  # loses nothing


def open_run(
    config: FleetConfig, classes: ClassTexts, dim: int, encoder_id: str, journal: Journal
) -> Run:
    """The journal's unfinished run, or a new one with its initial model.

    Raises ConfigError where the unfinished run has other settings, classes or encoder.
    """
    plan = methods.with_defaults(config.plan)
    run = journal.unfinished_run()
    wanted = (plan, encoder_id, classes.digest)
    if run is not None and (run.plan, run.encoder_id, run.classes_digest) != wanted:
        if journal.has_begun(run.id):
            raise ConfigError(
                f"the journal {config.journal} holds {run.id}, unfinished, with another plan, "
                "encoder or classes; put these back to finish it, or name another file under "
                "'journal'"
            )
        journal.finish(run.id)  # no device ever said hello: nothing is lost with it
        run = None
    if run is None:
        run = Run(f"run-{secrets.token_hex(4)}", plan, encoder_id, classes.digest)
        journal.add_run(run, stored_model(methods.initial(plan, classes, dim), {}, plan))
    return run


@dataclass(eq=False)
class RunState:
    """An open run: its model, and the sum of the open round."""

    run: Run
    journal: Journal
    layout: Layout  # of its models and updates
    model: Model  # the master
    stored: StoredModel  # the model in the bytes that are published
    total: Total

    @property
    def version(self) -> str:
        """SHA-256 of the model's published bytes."""
        return self.stored.sha256

    @property
    def blob(self) -> Blob:
        """The model as it is announced where nothing limits a packet."""
        return Blob(self.stored.sha256, len(self.stored.payload))

    def kept(self) -> dict[str, str]:
        """By device, the SHA-256 of what is on disk for the open round."""
        return self.journal.kept(self.run.id, self.model.round + 1)

    def has_kept(self, device: str, round: int, sha256: str) -> bool:
        """True where this very contribution is in this run, its round open or closed."""
        return self.journal.has_kept(self.run.id, round, device, sha256)

    def check(self, device: str, round: int, contribution: Contribution) -> None:
        """Raises PeerError where it is not what `device` may add to the round in this model."""
        expected = {
            "run": self.run.id,
            "round": round,
            "device": device,
            "base": self.version,
            "encoder_id": self.run.encoder_id,
            "classes_digest": self.run.classes_digest,
        }
        for name, value in expected.items():
            got = getattr(contribution, name)
            if got != value:
                raise PeerError(f"contribution: {name} is {str(got)[:80]!r}, expected {value!r}")
        self.total.check(contribution.update)

    def keep(self, contribution: Contribution, sha256: str, payload: bytes) -> None:
        """Puts a checked contribution on disk, then into the sum; raises JournalError."""
        self.journal.keep(self.run.id, contribution.round, contribution.device, sha256, payload)
        self.total.add(contribution.update)

    def close_round(self) -> None:
        """Combines the sum into the next model and commits it; raises JournalError."""
        plan = self.run.plan
        state: Arrays = safetensors.numpy.load(self.stored.server_state)
        model, state = methods.get(plan.method).combine(self.model, self.total, state)
        stored = stored_model(model, state, plan)
        self.journal.close_round(self.run.id, stored)
        self.model, self.stored, self.total = model, stored, strategies.total(plan)

    def finish(self) -> Path:
        """Writes the run's model file, marks the run as finished, and says where the file is.

        Raises JournalError where the disk refuses either; the run then stays unfinished.
        """
        run = self.run
        path = model_file.path_of(self.journal.path, run.id)
        trained = model_file.TrainedModel(
            self.model, run.id, run.plan, run.encoder_id, run.classes_digest
        )
        try:
            model_file.write(path, trained)
        except OSError as error:
            raise JournalError(
                f"the model {path} cannot be written ({error.strerror or error}); it is in the "
                "journal: free or mend the disk and start again"
            ) from error
        self.journal.finish(run.id)
        return path


def open_run_state(run: Run, journal: Journal, layout: Layout) -> RunState:
    """The state of a run as the journal has it."""
    plan, stored = run.plan, journal.newest_model(run.id)
    model = master_model(stored, layout.parameters)
    total = strategies.total(plan)
    for payload in journal.contributions(run.id, model.round + 1):
        kept = wire.unpack_contribution(payload, plan.codec_up, layout.delta, layout.sums)
        total.add(kept.update)
    return RunState(run, journal, layout, model, stored, total)


def stored_model(model: Model, server_state: Arrays, plan: Plan) -> StoredModel:
    payload = wire.pack_model(model, plan.codec_down)
    lossless = plan.codec_down == MASTER_CODEC
    return StoredModel(
        round=model.round,
        sha256=hashlib.sha256(payload).hexdigest(),
        payload=payload,
        server_state=safetensors.numpy.save(in_order(server_state)),
        master=None if lossless else wire.pack_model(model, MASTER_CODEC),
    )


def master_model(stored: StoredModel, shapes: Shapes) -> Model:
    """A journal's model in float32, whatever it was published in; PeerError if it is damaged."""
    return wire.unpack_model(stored.master or stored.payload, MASTER_CODEC, shapes)
