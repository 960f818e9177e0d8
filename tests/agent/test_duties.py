"""The duties of an agent while its workers work: with the trainer, the session follows the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from session_scene import TOPICS, Scene, manifest, model, state

from fedclip_edge.agent.duties import Duties
from fedclip_edge.agent.pause import Pause
from fedclip_edge.agent.settings import Settings
from fedclip_edge.agent.state_lock import lock_state_dir
from fedclip_edge.agent.task import Training
from fedclip_edge.agent.working import UnwantedError
from fedclip_edge.config.limits import Limits
from fedclip_edge.pki.expiry import Expiry
from fedclip_edge.processes.children import Children
from fedclip_edge.processes.worker import Worker
from fedclip_edge.protocol.messages import Hello


@pytest.fixture
def duties(scene: Scene, tmp_path: Path) -> Iterator[Duties]:
    """The duties of a device that has begun to train."""
    pause = Pause(Limits, tmp_path)
    lock = lock_state_dir(tmp_path)
    made = Duties(Expiry(None, ""), None, Settings(scene.config), pause, lock)
    made.session = scene.session
    scene.flow()
    scene.say(manifest())
    scene.flow()
    scene.say_model(model(0))
    scene.flow()
    scene.session.act(scene.now)
    assert isinstance(scene.session.task, Training)
    yield made
    lock.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    with Children() as children:
        yield Worker(children, "trainer", "nothing:Nothing", tuple)


def test_while_the_trainer_works_messages_are_handled(
    duties: Duties, scene: Scene, worker: Worker
) -> None:
    duties.watch(worker, does_tasks=True)
    scene.heard(Hello)
    scene.say(state("k2", epoch=6), topic=TOPICS.coordinator_state)
    worker.meanwhile()
    assert len(scene.heard(Hello)) == 1
    scene.say(manifest(epoch=6, phase="done"))
    with pytest.raises(UnwantedError):
        worker.meanwhile()


def test_while_the_trainer_has_no_task_of_the_session_no_message_is_handled(
    duties: Duties, scene: Scene, worker: Worker
) -> None:
    duties.watch(worker, does_tasks=True)
    scene.session.drop_task()
    scene.say(manifest(phase="done"))
    worker.meanwhile()
    assert scene.link.inbox


def test_while_the_encoder_works_no_message_is_handled(
    duties: Duties, scene: Scene, worker: Worker
) -> None:
    """Its work is no task: it would go on, or a hello would bring a device back that encodes."""
    duties.watch(worker)
    scene.say(manifest(phase="done"))
    worker.meanwhile()
    assert scene.link.inbox
