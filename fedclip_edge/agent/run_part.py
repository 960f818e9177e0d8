"""The device's part in the coordinator's run: if it can take part, and if it is done with the run.

Law: a device ends each run that it took part in exactly once (`trust.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedclip_edge import log
from fedclip_edge.agent.model_download import ModelDownload
from fedclip_edge.agent.publisher import Publisher
from fedclip_edge.agent.standby import Standby
from fedclip_edge.agent.trust import Trust
from fedclip_edge.errors import ConfigError
from fedclip_edge.protocol.messages import Manifest


@dataclass(eq=False)
class RunPart:
    """The part of one device; `is_finished` is set when a run of it ends. The caller resets it."""

    publisher: Publisher
    trust: Trust
    download: ModelDownload
    standby: Standby
    is_finished: bool = False
    _unusable: Mapping[str, str] = field(default_factory=dict)  # why the plan of this run is

    def fits(self, manifest: Manifest) -> bool:
        """True if this device can take part in the run."""
        return self.is_ours(manifest) and manifest.run not in self._unusable

    def is_ours(self, manifest: Manifest) -> bool:
        """True if the run has this device's bundle, and a method that its owner allows.

        The coordinator refuses this device in all other runs.
        """
        is_allowed = manifest.plan.method in self.publisher.capabilities.methods
        return is_allowed and self.has_its_bundle(manifest)

    def has_its_bundle(self, manifest: Manifest) -> bool:
        """True if the run has this device's bundle."""
        ours = self.publisher.encoder_id, self.publisher.classes_digest
        return (manifest.encoder_id, manifest.classes_digest) == ours

    def check_plan(self, manifest: Manifest) -> None:
        """Note if this device does not support the run's plan; a later run may have another one.

        Raises PeerError if the run's model is larger than the plan allows.
        """
        if self.is_ours(manifest) and manifest.run not in self._unusable:
            try:
                self.download.check_size(manifest)
            except ConfigError as error:
                self._unusable = {manifest.run: str(error)}

    def join(self, manifest: Manifest, now: float) -> None:
        """Take part in the run, as the coordinator's answer says, unless its plan fails here."""
        if manifest.run in self._unusable:
            self.stand_by(manifest, self._unusable[manifest.run], now)
        else:
            self.standby.end()

    def stand_by(self, manifest: Manifest, reason: str, now: float) -> None:
        """Take no part in a run whose plan does not work here, so that no round waits for it."""
        self._unusable = {manifest.run: reason}
        self.standby.fail(f"its plan does not work on this device: {reason}", now)
        self.publisher.publish_state(online=False, reason=self.standby.reason)

    def finish(self) -> None:
        """Set `is_finished`, once per run, if this device took part in the run."""
        if self.trust.is_mine:
            self.trust.end_run()
            self.is_finished = True

    def miss_end(self) -> None:
        """Set `is_finished`: the run ended while this device heard nothing (`Trust.miss_end`)."""
        log.event("run_ended_without_this_device", run=self.trust.miss_end())
        self.is_finished = True
