"""The meaning of each log event and of each of its fields, for docs/reference/log-events.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedclip_edge.agent.standby import REPEAT_S
from fedclip_edge.cli.progress import EVERY_S
from fedclip_edge.coordinator.coordinator import MUTED_S
from fedclip_edge.coordinator.devices import ENCODING_S
from fedclip_edge.coordinator.uploads import LEASE_S
from fedclip_edge.pki.expiry import WARN_DAYS

AGENT, COORDINATOR, BOTH = "Agent", "Coordinator", "Agent and coordinator"

# Which program writes the events of a module or folder.
PROGRAMS: Mapping[str, str] = {
    "agent/": AGENT,
    "cli/agent.py": AGENT,
    "vision/": AGENT,
    "learning/personal.py": AGENT,
    "coordinator/": COORDINATOR,
    "learning/methods/": BOTH,
    "learning/kinds.py": BOTH,
    "learning/vote_result.py": BOTH,
    "learning/strategies/": BOTH,
    "pki/": BOTH,
    "processes/": BOTH,
    "web/": BOTH,
    "transport/": BOTH,
}


@dataclass(frozen=True)
class Event:
    """Meaning of an event, and the next step if there is one."""

    meaning: str
    action: str = ""


_CAUTION = Event(
    "The bundle can be used, but its features may be wrong: its weights are random, or it was "
    "written with `--accept-parity`.",
    "Export the bundle again if it is for real use.",
)
_LINK_LOST = Event(
    "The connection to the broker was lost, or the program ended it to make a new one (`reason`). "
    "The program connects again without a restart.",
)
_ACCURACIES = "**report.accuracy"

# By program and event, in the order of a run.
EVENTS: Mapping[str, Mapping[str, Event]] = {
    AGENT: {
        "bundle_in_use": Event("The bundle that the device uses from now on."),
        "bundle_caution": _CAUTION,
        "bundle_fetching": Event(
            "The run has a bundle with a larger serial number, signed by the export key. The device "
            "fetches the files that it does not have.",
        ),
        "bundle_progress": Event("Progress of a file that is fetched, every 30 seconds."),
        "bundle_file_damaged": Event(
            "A file of a fetched bundle is not the one that was signed. It is fetched again.",
            "If it happens again and again, check the memory and the disk of the box.",
        ),
        "bundle_tried": Event(
            "All files are here. The new encoder is loaded in a process of its own, and its features "
            "are compared with those of the machine that exported it.",
        ),
        "bundle_switched": Event(
            "The fetched bundle passed and is in use. The one before is kept for `bundle rollback`."
        ),
        "bundle_refused": Event(
            "The coordinator's bundle is not accepted. The device goes on with the one that it has, "
            "and takes part in no run that needs the other one.",
            "The reason says what to do.",
        ),
        "bundle_not_stored": Event(
            "A file of the bundle could not be written. The device tries again after `again_s` "
            "seconds.",
            "Free space on the disk of `state_dir`, or repair it.",
        ),
        "tensorrt_engine_building": Event(
            "TensorRT compiles the encoder for this GPU. This takes minutes and happens once. "
            "`predict` and `bundle verify` write this event as well.",
        ),
        "tensorrt_engine_not_used": Event(
            "The stored engine does not load, for example because it is damaged. A new one is built, "
            "which takes minutes, and replaces it.",
        ),
        "tensorrt_engine_built": Event("The engine is built, and stored for the next start."),
        "encoder_providers_tried": Event(
            "The providers that are installed are tried on the bundle's golden vectors, each in a "
            "process of its own. This takes seconds, with TensorRT minutes, and happens once."
        ),
        "encoder_provider_chosen": Event(
            "A provider is chosen. `tried` has the speed of each provider, or why it is refused. "
            "The choice is kept in `state_dir/encoder.json`."
        ),
        "encoder_provider_checked": Event(
            "A library or the processor is another one than at the choice of the provider, so its "
            "golden vectors were checked again."
        ),
        "encoder_provider_kept": Event(
            "More providers are possible than were tried. The device stays with its choice, because "
            "with another one it would encode all its pictures again.",
            "To choose again, delete the file.",
        ),
        "encoder_provider_changed": Event(
            "The provider of the encoder is another one than before, for the reason given. All "
            "pictures are encoded again.",
            "If a package was removed by mistake, install it again.",
        ),
        "encoder_choice_damaged": Event(
            "The file with the chosen provider cannot be read. The device chooses again.",
            "Check the disk of the box.",
        ),
        "encoding_pictures": Event(
            f"Progress of encoding, every {EVERY_S:g} seconds if standard error is not a terminal.",
        ),
        "encoding_offline": Event(
            "The broker cannot be reached while the device encodes. Encoding goes on. The agent tries "
            "again after `again_s` seconds, and at the end.",
            "Check the broker and the network before the encoding ends.",
        ),
        "files_ignored": Event("The picture folder has files that are not pictures."),
        "not_used": Event(
            "A file or folder can be read, but does not count: for example a folder that is not named "
            "after a class, a class folder without a picture, or a side-car that is not UTF-8.",
            "Do what the reason says. Rename a folder if the reason names a class, or move it away.",
        ),
        "picture_skipped": Event(
            "A picture, or a folder of pictures, cannot be read; it is left out.",
            "Repair or remove the file, or correct the permissions.",
        ),
        "class_without_test_pictures": Event(
            "No picture of this class is on the test side, so its accuracy is unknown.",
            "Add pictures of the class.",
        ),
        "pictures_changed": Event(
            "The picture folder has other pictures than at the last reading. The device uses them from "
            "now on, and tells the coordinator how many it has.",
        ),
        "pictures_not_read": Event(
            "The picture folder cannot be read again. The device goes on with the pictures that it "
            "knows.",
            "Correct what the reason names.",
        ),
        "labels_disagree": Event(
            "A picture has two labels. The first in this order counts: a person, the manifest, the "
            "side-car, the class folder.",
            "Correct the label that is wrong.",
        ),
        "near_copies": Event(
            "So many test pictures look like a training picture (cosine of the features 0.97 or more) "
            "that they are probably frames of the same events. The measured accuracy is then too high.",
            "Set `group_by` under `[data]`.",
        ),
        "group_too_large": Event(
            "One group of `group_by` has more than half of the pictures, so a side of the split may be "
            "empty.",
            "Choose another `group_by`, `group_pattern` or `group_seconds`.",
        ),
        "work_paused": Event(
            "The box is hotter than `max_temperature_c`, or runs on its battery with `on_battery = "
            '"pause"`. The device encodes and trains nothing, and counts as offline at the '
            "coordinator, which shows it as paused. It stays connected. A work that has begun is stopped, and goes on after the "
            "pause if that is short.",
            "Cool the box or connect it, or change `[limits]`.",
        ),
        "work_resumed": Event("The reason of the last pause is gone, and the device goes on."),
        "cache_trimmed": Event(
            "The feature cache was above `max_cache_mb`. Features that are not in use were deleted; "
            "`mb` is what it holds now."
        ),
        "cache_above_limit": Event(
            "The feature cache is above `max_cache_mb` with the features of the labelled pictures "
            "alone. They stay, because the device would encode the same pictures again and again.",
            "Raise `max_cache_mb`, or remove pictures.",
        ),
        "cache_not_trimmed": Event(
            "The feature cache is above `max_cache_mb`, and cannot be made smaller.",
            "Do what the reason says.",
        ),
        "settings_read": Event(
            "After SIGHUP the agent has read its configuration file again, and uses the settings "
            "that `changed` names."
        ),
        "settings_not_used": Event(
            "The configuration file that was read after SIGHUP has a mistake, or the agent cannot "
            "work with it. The settings before stay in use.",
            "Correct the file, then send SIGHUP again (`systemctl reload`).",
        ),
        "restart_needed": Event(
            "After SIGHUP, these settings have changed in the file. They are used from the next "
            "start on; until then the earlier ones stay.",
            "Restart the agent.",
        ),
        "folder_away": Event(
            "A picture folder is missing, suddenly empty, or on another file system without any of "
            "the known pictures, as if its share was not mounted. Its `pictures` stay in use. Written "
            "once; `folder_back` follows. An `[inbox]` may be emptied, so it is away for ten minutes "
            "only, if it is empty at the start or if an empty folder is in its place.",
            "Mount the share, or put pictures into the folder. If the other file system is right, "
            "restart the agent.",
        ),
        "folder_back": Event("The picture folder is there again; it is searched for changes."),
        "folder_searched": Event(
            "The operating system does not report changes in the picture folders, for the given "
            "reason, so they are searched again and again: every second, or less often if a search "
            "takes longer than a twentieth of that.",
            "Do what the reason says, if new pictures should be noticed sooner.",
        ),
        "picture_changed_unnoticed": Event(
            "A file has other bytes than at its last reading, although its size and its times are the "
            "same. From now on it counts as the new picture.",
            "Check the disk, and the program that writes the pictures.",
        ),
        "feature_cache_rebuilt": Event(
            "The features of the pictures, `state_dir/features.sqlite`, are damaged, or an earlier "
            "version of the program wrote them. The file is made anew, so all pictures are encoded "
            "again.",
            "If the reason is damage and it happens again, replace the disk.",
        ),
        "state_file_rebuilt": Event(
            "`state_dir/parked.sqlite` is damaged, missing, or of another version of the program. It "
            "was made anew from `position.json`: the position in the run, the coordinator's newest key "
            "and the broker's address are as before, and `lost` says what is not.",
            "If it is damaged again, replace the disk. The earlier file (`kept`) may be deleted.",
        ),
        "position_damaged": Event(
            "`state_dir/position.json`, which repeats a part of `parked.sqlite`, is damaged. It is "
            "written again from there.",
        ),
        "position_not_written": Event(
            "`state_dir/position.json` cannot be written. The device goes on, and writes it at the "
            "next change. If `parked.sqlite` is damaged before that, the device continues from an "
            "earlier position.",
            "Free or repair the disk.",
        ),
        "parked_update_damaged": Event(
            "The update that waited in `state_dir/parked.sqlite` is damaged. It is not offered; the "
            "device trains it again while its round is open.",
            "If it happens again, replace the disk.",
        ),
        "residual_damaged": Event(
            "What the codec has lost of the last update is damaged in `state_dir/parked.sqlite`. It "
            "counts as zero, so that update stays a little less exact.",
            "If it happens again, replace the disk.",
        ),
        "file_name_not_text": Event(
            "A file in the picture folder has a name that is not UTF-8, which ends a watch of the "
            "folder. The file is used. For `searched_s` seconds after each change or reading of such a "
            "file, the folder is searched instead, and then watched again. Written once.",
            "None; if new pictures should be noticed sooner, rename such files to UTF-8, for example "
            "with `convmv`.",
        ),
        "picture_index_rebuilt": Event(
            "The index of the pictures, `state_dir/pictures.sqlite`, is damaged or of another version. "
            "It is made anew, so all pictures are read once.",
        ),
        "answered_pictures_lost": Event(
            "The list of answered pictures, `state_dir/answered.sqlite`, is damaged or of another "
            "version. It is made anew. Pictures that came while the agent was stopped are not "
            "answered, as at a first start.",
        ),
        "picture_index_not_saved": Event(
            "The index of the pictures cannot be written. The device goes on with the index in memory, "
            "and tries again.",
            "Free or repair the disk. If the agent ends before that, pictures are read again.",
        ),
        "encoding_new_pictures": Event(
            "The device needs more than a few seconds to encode new pictures. Until it is ready it "
            "counts as offline.",
        ),
        "features_ready": Event("The features of all pictures are ready, new or from the cache."),
        "pictures_withheld": Event(
            "No update depends on these pictures, because a class or one side of it has fewer than "
            "`min_per_class`. Written at the start, and when a plan with a higher number changes it.",
            "Add pictures of these classes, or lower `min_per_class` in `agent.toml`.",
        ),
        "not_training": Event(
            "This device sends no updates, because no class has enough pictures. It still receives "
            "the models of runs, and begins to train when it has enough.",
            "Follow `hint`.",
        ),
        "unlabelled_encoded": Event(
            "Unlabelled pictures that were there at the first start have got their features, for "
            "`fedclip-edge review`. Written at the end, and at most every 30 s before.",
        ),
        "unlabelled_not_encoded": Event(
            "Unlabelled pictures have no features yet, for the reason named. The agent tries again "
            "after a minute.",
            "Follow the reason.",
        ),
        "not_evaluating": Event(
            "This device evaluates no models, because it has no labelled picture on the test side. "
            "It still receives the models of runs, and begins to evaluate when it has one.",
            "Follow `hint`.",
        ),
        "connected": Event(
            "The device is connected to the broker, and its features are ready. Not written if the "
            "link broke while pictures were encoded: then `link_restored` follows.",
        ),
        "no_answer": Event(
            "No coordinator has answered this device's hello. The device keeps asking.",
            "Start `fedclip-edge serve`. If it runs, compare `fleet` and `[broker]` in both files.",
        ),
        "not_in_run": Event(
            "This device does not take part in the coordinator's run: the coordinator refuses it, or "
            "the run's plan does not work here. It stays connected, says hello again every five "
            "minutes and to each new coordinator, and takes part once a run fits it. Written at "
            f"once, and every {REPEAT_S / 3600:g} h for the same reason.",
            "The reason names the remedy, such as copying the bundle.",
        ),
        "broker_moved": Event(
            "The coordinator says that the broker has a new address. The device remembers it, and goes "
            "there when the coordinator leaves the old one.",
        ),
        "broker_switched": Event(
            "The device uses the other one of two addresses of the broker: that of `agent.toml`, or "
            "the one that the coordinator named.",
            "If it is written again and again, none of them works: check both.",
        ),
        "coordinator_key_replaced": Event(
            "The coordinator has a new key, which its earlier key names in a signed statement. The "
            "device accepts only the new one from now on, also after a restart.",
        ),
        "torch_loaded": Event(
            "PyTorch is loaded in a new trainer process, before it trains by gradients."
        ),
        "trained": Event(
            "An update for the open round is computed and offered to the coordinator."
        ),
        "evaluated": Event("A model was measured on the test pictures of this device."),
        "answering_with": Event(
            "The model that answers new pictures from now on: `zero-shot`, `fleet` or `own`, and the "
            "run that made it."
        ),
        "model_not_written": Event(
            "The new model of the fleet is in use, but could not be written to `state_dir`. After a "
            "restart the device answers with the one before, until it has fetched it again.",
            "Free or repair the disk.",
        ),
        "model_file_not_used": Event(
            "A model in `state_dir` is damaged, or does not fit the bundle's encoder. The next one "
            "in the order own, fleet, zero-shot answers.",
            "None: the device gets a new one with the next run, or fetches the last one again.",
        ),
        "pictures_not_answered": Event(
            "The features of new pictures could not be computed, three times. These pictures get no "
            "answer before the next start, which tries them again.",
            "Read the reason.",
        ),
        "answers_delayed": Event(
            "The features of new pictures cannot be stored in `state_dir`. The pictures wait, and are "
            "answered once they can.",
            "Free or repair the disk.",
        ),
        "answers_not_written": Event(
            "The file of answers cannot be written. The newest 10,000 answers wait in memory, and "
            "the device goes on.",
            "Free or repair the disk, or set another `file` under `[answers]`.",
        ),
        "answers_written": Event(
            "The file of answers can be written again. `lost` is the number of answers that did not "
            "get into it."
        ),
        "answers_connected": Event(
            "The device publishes its answers at this broker; `waiting` of them waited for it."
        ),
        "answers_link_lost": Event(
            "The connection to the broker of `[answers.broker]` was lost. The device connects again; "
            "answers wait meanwhile."
        ),
        "answers_broker_not_reached": Event(
            "The broker of `[answers.broker]` does not answer, or refuses the login. The device goes "
            "on and tries again; the same reason is logged once.",
            "Start the broker, or correct `[answers.broker]`.",
        ),
        "answers_dropped": Event(
            "More than `keep` answers waited for the broker of `[answers.broker]`, and the oldest ones "
            "were not published; or the agent ended while answers waited. They are in the file.",
            "Raise `keep` if the broker is often away for long.",
        ),
        "work_dropped": Event(
            "The device ended its training or evaluation, because nobody wants the result any more: "
            "the round was closed, the run is over, or the device is refused in it.",
        ),
        "contribution_refused": Event(
            "The coordinator did not accept an update. If its round is still open, the device offers "
            "it again in the next attempt; otherwise it discards it.",
            "Read the reason: a round that has just closed is harmless, a limit of the plan is not.",
        ),
        "model_refused": Event(
            "A downloaded model does not fit the run's plan. It is downloaded again.",
            "Check that agent and coordinator have the same version.",
        ),
        "model_not_evaluated": Event(
            "Rounds close faster than this device evaluates; the oldest waiting model was dropped "
            "from its queue. The figures lack a row for this round.",
        ),
        "update_of_a_lost_round": Event(
            "The coordinator continues from an older copy of its journal. The update belongs to a "
            "round that the coordinator no longer knows; the device discards it and trains again.",
        ),
        "update_withdrawn": Event(
            "`min_per_class` in `agent.toml` is higher than when this update was made. The device "
            "does not offer it again; it trains the round anew if the round is still open.",
        ),
        "personal_model_stopped": Event(
            "Training of the personal model diverged in this epoch. The epochs before it still count.",
            "Lower `lr` under `[plan.options]`.",
        ),
        "message_refused": Event(
            "A message broke the protocol, or was not signed by the key that this device trusts. "
            "It was dropped. Written in full for the first one of each kind, and then once a minute "
            "with the `count` of further ones.",
            "If this happens again, read the reason: a new coordinator with another key cannot continue a "
            "run.",
        ),
        "metrics_not_written": Event(
            "The file `metrics_file` cannot be written. The agent goes on without it. Written once "
            "while it lasts.",
            "Follow `hint`.",
        ),
        "metrics_written": Event("The file `metrics_file` is written again."),
        "connection_awaited": Event(
            "No broker can be reached yet (`reason`). With `[page]`, the agent goes on, so that its "
            "page can be used, and tries again. Written once for each reason.",
            "Look at the network of the box and at the broker; `fedclip-edge doctor` helps.",
        ),
        "labels_given": Event(
            "Somebody gave so many `pictures` the class `label` on the device's page, or took their "
            "labels back; `name` is what the person wrote at the login."
        ),
        "labels_confirmed": Event(
            "Somebody found the labels of so many `pictures` right, on the device's page."
        ),
        "labels_undone": Event(
            "Somebody undid the last `labels_given` or `labels_confirmed` on the device's page."
        ),
        "state_not_written": Event(
            "The file `now.json` in `state_dir` cannot be written, so the box's page shows an old "
            "state. The agent goes on. Written once while it lasts.",
            "Follow `hint`.",
        ),
        "link_lost": _LINK_LOST,
        "parts_lost": Event(
            "The chunks of a model or an update were asked for again and again, and none arrives, "
            "although the connection is up. Brokers with MQTT 3.1.1 drop messages above a limit "
            "without an error. Written once while it lasts.",
            "Look for `broker_limit` in the log of the other side, then raise the broker's limits.",
        ),
        "parts_arrive": Event("Chunks arrive again, after `parts_lost`."),
        "run_ended_without_this_device": Event(
            "The run ended while this device was away, and no coordinator is online to send the "
            "last model.",
        ),
        "run_done": Event("The run is over. With `--once` the agent ends, otherwise it waits."),
    },
    COORDINATOR: {
        "bundle_offered": Event(
            "Devices that have another bundle than the run fetch this one from the coordinator."
        ),
        "bundle_not_offered": Event(
            "The bundle has no valid signature of the export key, so no device can fetch it.",
            "Sign it with `fedclip-edge bundle sign`, or copy it to every device.",
        ),
        "journal_rewritten": Event(
            "The journal was written again as a whole, because a device was forgotten while the "
            "coordinator served. No byte of the device is left in it.",
        ),
        "journal_not_rewritten": Event(
            "The journal could not be written again after a device was forgotten; `serve` goes on. "
            "Unused parts of its pages may still hold copies of rows of the device.",
            "Do what `reason` says, then restart `serve`.",
        ),
        "published_bundle_damaged": Event(
            "A published bundle cannot be read and is not used.",
            "Publish the classes again with `fedclip-edge classes publish`.",
        ),
        "bundle_caution": _CAUTION,
        "run_abandoned": Event(
            "The unfinished run in the journal has made way for a new one: with `--new-run`, or "
            "because its settings have changed before it had any result.",
            "To use its newest model, follow `hint`.",
        ),
        "metrics_served": Event("Prometheus can read the [metrics](metrics.md) at this address."),
        "serving": Event(
            "A run begins, or the coordinator has started: it is online and waits for devices.",
        ),
        "between_runs": Event(
            "No run is under way. The devices still get the last model.",
            "Follow `hint`, if there is one.",
        ),
        "run_not_started": Event(
            "A run was due and could not start. The coordinator tries again every second, and writes "
            "each reason once.",
            "Correct what `reason` names; a change of `fleet.toml` needs no restart.",
        ),
        "joined": Event("A device said hello and was admitted."),
        "device_refused": Event(
            "A device was not admitted, or lost its admission. Its agent waits for another run "
            "(`not_in_run`) or, if it is not enrolled or revoked, ends with exit code 14. If it says hello again, that is written once a minute, with the `count`.",
            "The reason names the remedy, such as copying the bundle or enrolling the device.",
        ),
        "kept": Event(
            "A contribution is added to its round, and written to the journal. A `norm` far above those of the other devices, or a "
            "large `weight`, shows a device that learns from other pictures, or a hostile one.",
        ),
        "left": Event(
            "A device went offline. One that stays connected says why, in `reason`. After the coordinator's own connection was lost, this is "
            "written for every device; each one then says hello again.",
        ),
        "epoch_raised": Event(
            "A device knows a later coordinator: the journal is new or an old copy. The coordinator "
            "takes a higher epoch and continues.",
        ),
        "operator_action": Event(
            "A user of this machine has given a command that changes the runs."
        ),
        "contribution_dropped": Event(
            "An update was not accepted, for example because its round is closed.",
        ),
        "upload_abandoned": Event(
            f"A device with an upload slot sent nothing for {LEASE_S:g} seconds, and loses the slot.",
            "If this happens again, check the network of this device.",
        ),
        "given_up": Event(
            "A device was silent until the deadline. It counts as offline until it says hello again.",
            "Check the device.",
        ),
        "missed": Event(
            "A device missed a deadline. After the second one in a row it is left out: it no longer "
            "counts for the quorum, and rounds do not wait for it.",
            "Check the device; `reason` says what to look for.",
        ),
        "counts_again": Event("A device that was left out has contributed, and counts again."),
        "waiting": Event(
            "The coordinator waits: in phase `gathering` for training devices, in phase `open` for "
            "contributions. Written at once and then every minute; in phase `open` after a minute, "
            "or at once if a device is away.",
            "Check the devices that are named. See "
            "[Stuck between rounds](../how-to/troubleshooting.md#stuck-between-rounds).",
        ),
        "too_few_enrolled": Event(
            "The first round needs more devices than are enrolled and not revoked. Devices that were "
            "revoked are not waited for: `waiting_for` says how many are. Written at the start and "
            "when the registry changes.",
            "Enrol more devices, or lower `devices` under `[rules]`.",
        ),
        "device_encodes": Event(
            "A device encodes its pictures; it joins when it is done. Written when the coordinator "
            f"first learns of it, and then every {ENCODING_S / 60:g} minutes for each device.",
        ),
        "round_closed": Event("A round is closed, and the next model is made."),
        "last_counted": Event(
            'With `absent = "last"`, these devices were away or late, and counted in this round with '
            "their last contribution.",
        ),
        "last_not_counted": Event(
            "The last contribution of a device that is away does not fit this round, so it does not "
            "count. `run` is the run that it was made for.",
        ),
        "sums_dropped": Event(
            "The last contributions of all devices are more than `keep_sums_mb`; the oldest were "
            "deleted from the journal.",
            "Raise `keep_sums_mb`. Without them `forget` cannot compute the model again, and "
            '`absent = "last"` does not count their devices.',
        ),
        "report": Event("A device measured a model. The fields are those of the agent's event."),
        "message_refused": Event(
            "A message broke the protocol or has a wrong signature. It was dropped. Written in full "
            "for the first one of each device and kind, and then once a minute with the `count` of "
            "further ones.",
            "If this happens again for one device, check the version and the key of that device.",
        ),
        "device_muted": Event(
            f"A device floods the coordinator. For {MUTED_S:g} seconds the coordinator does not listen "
            "to it and counts it as offline. The coordinator makes a new link, so `link_lost`, `left` "
            "and `joined` follow for the other devices. A device that joins the fleet for the first "
            "time in this time may have to wait as long.",
            "Check the device, or revoke it.",
        ),
        "registry_not_read": Event(
            "The registry has changed and cannot be read. The previous version stays in force.",
            "Repair the file.",
        ),
        "client_not_disconnected": Event(
            "The broker did not end the connection of a device that was refused. The coordinator "
            "ignores the device anyway.",
            "Restart the broker to end the connection.",
        ),
        "trainer_output": Event(
            "A line that the device of `[trainer]` wrote and that is no log event, such as an error "
            "message. All events of that device appear in the log of `serve`, with the field `trainer`.",
        ),
        "trainer_ended": Event(
            "The device of `[trainer]` ended before the run. The run continues without it.",
            "Look up the [exit code](exit-codes.md).",
        ),
        "link_lost": _LINK_LOST,
        "model_written": Event("The model of the run is in this file."),
        "run_done": Event("The run is over. `serve --once` ends; `serve` waits for the next run."),
        "report_written": Event(
            "The report of the run is in this file. Without jinja2 it is the JSON file only.",
            "Open the page in a browser, or see it with `fedclip-edge run show`.",
        ),
        "report_not_written": Event(
            "The report of the run could not be written. The run is not affected.",
            "Repair the folder; `fedclip-edge run show` has the same figures.",
        ),
    },
    BOTH: {
        "page_served": Event(
            "The page of the fleet or of the box can be opened at `address`. Its process starts when "
            "a browser asks for it, and ends when nobody uses it.",
            "Log in with the content of `token_file`.",
        ),
        "page_not_served": Event(
            "The page cannot be served as `[page]` says. The program goes on without it.",
            "Follow `hint`.",
        ),
        "page_login": Event("Somebody logged in to the page, with the token."),
        "page_login_refused": Event(
            "Somebody tried to log in to the page with a wrong token.",
            "If you do not know the address, find out who can reach the page.",
        ),
        "page_ended": Event(
            "The process of the page failed (`code`), or could not be started (`reason`); the program "
            "goes on. It is started again after 5 s at the earliest, if a browser asks for it, unless "
            "`hint` says what to correct.",
        ),
        "worker_died": Event(
            "A child process of the agent, `encoder` or `trainer`, died while it worked. A new one "
            "does the same work once more.",
            "Often the machine has too little memory, and the system killed the process (SIGKILL): "
            "stop other programs, raise `MemoryMax`, or use a smaller encoder.",
        ),
        "stopped": Event(
            "SIGTERM or Ctrl-C (SIGINT) stopped the program. It is the last line; the goodbye to its "
            "peers is over.",
        ),
        "systemd_not_told": Event(
            "systemd started the program, and a message to it cannot be sent. Written once until one "
            "is sent again.",
            "Look at the unit: without the message `READY=1` systemd ends the program.",
        ),
        "broker_not_reached": Event(
            "An attempt to connect failed. The program tries again; each reason is written once "
            "until the connection is back.",
            "Read the reason: the broker, the network or a certificate.",
        ),
        "link_restored": Event("The connection to the broker is back, after `link_lost`."),
        "broker_limit": Event(
            "The broker does not take messages of a size that the fleet needs: it refuses them, or "
            "ends the connection each time. Written once while it lasts. Refused messages are sent "
            "again, at growing intervals if the connection ends; `link_lost` is not written.",
            "Raise the settings that `reason` names in the broker, or lower `max_packet_bytes`. "
            "Nothing has to be restarted but the broker.",
        ),
        "broker_limit_over": Event("The broker takes messages of that size again."),
        "message_not_taken": Event(
            "The broker refused a message, which is lost; the program sends it again if it is "
            "still needed.",
            "Check the broker's access list, and that the user name is the device's id.",
        ),
        "messages_dropped": Event(
            "Messages came faster than they could be handled. Those above the sender's share were "
            "dropped. Written at once and then once a minute.",
            "Check the named device, or revoke it. What was lost is sent again.",
        ),
        "certificate_ends": Event(
            f"A certificate expires in less than {WARN_DAYS} days: that of this process or, at the "
            "coordinator, that of the authority. At the coordinator, one more line names the "
            "registry's devices whose certificates expire soon or have expired, without the revoked "
            "ones. Written at the start and then daily.",
            "Follow `hint`.",
        ),
        "ridge_chosen": Event("The method `ridge` solved for its head with these settings."),
        "vote_decided": Event(
            "The vote that ends the run is decided. `candidate` is its number on the ballot: 0 is "
            "zero-shot CLIP, 1 is what the method takes without a vote. "
            "[The vote](../explanation/methods.md#the-vote) explains the rule.",
        ),
        "gda_solved": Event("The method `gda` solved for its head from the sums of all devices."),
        "tofa_solved": Event(
            "The method `tofa` made its head and its statistics from the sums of all devices."
        ),
        "solved_without_pictures": Event(
            "No device sent sums over training pictures; the model is zero-shot CLIP.",
            "Compare the number of pictures with `min_per_class`.",
        ),
        "nearest_updates": Event(
            "The strategy `krum` or `multi-krum` used only the updates nearest to each other."
        ),
    },
}

# By field, or by event and field where the event has its own meaning for it.
FIELDS: Mapping[str, str] = {
    _ACCURACIES: "One field per figure, each a fraction from 0 to 1. `zero_shot`, `federated` and, "
    "if there is one, `personal` are top-1 accuracies on the test pictures; the last evaluation may "
    "add `local`. The same names with `_f1` are macro F1, with `_ece` the expected calibration "
    "error. `unknown` is the share of the test pictures that the shared model calls unknown, once it "
    "has a threshold. `zero_shot_all`, at the end, is the zero-shot accuracy on all pictures.",
    "absent": "Devices that were away or late.",
    "address": "Host and port of the metrics or, of the page, its address or that of a browser.",
    "token_file": "The file with the token that opens the page.",
    "name": "The name that the person gave; it is not proven.",
    "again_s": "Seconds until the next attempt.",
    "serial": "Serial number of the bundle.",
    "signer": "Beginning of the public key that signed the bundle.",
    "files": "Names of the files that are fetched.",
    "size_bytes": "Size of these files.",
    "file": "The file, or the kind of file; of `metrics_not_written`, `metrics_file`; of "
    "`state_not_written`, `now.json`.",
    "done_bytes": "Bytes that have arrived.",
    "total_bytes": "Size of the file in bytes.",
    "bundle_in_use.classes": "Number of classes.",
    "broker": "Host and port of the broker.",
    "encoder_provider_changed.before": "The earlier provider.",
    "before": "First digits of the coordinator's earlier key.",
    "bundle": "Folder of the bundle.",
    "byzantine": "Number of updates that are assumed to be arbitrary.",
    "changed": "The settings that have changed, by their keys or tables.",
    "cached": "Pictures whose features were in the cache.",
    "caution": "The warning, in words.",
    "certificate": "File of the certificate.",
    "class_name": "Name of the class.",
    "classes": "Names of the classes, each with the number of its withheld pictures.",
    "client": "MQTT client id of the device.",
    "code": "Exit code of the process.",
    "cohort": "Number of devices that were asked to contribute.",
    "added": "Number of pictures that were not there before.",
    "removed": "Number of pictures that are not there any more.",
    "cause": "Why the run was due.",
    "next_at": "Time at which the next run is due.",
    "between_runs.new_pictures": "Number of new pictures that starts the next run.",
    "started_from": "`zero-shot`, or the run whose model this run started from.",
    "paused": "True if the operator has paused the run.",
    "over": "True if the run was over before this process started.",
    "command": "Name of the command.",
    "arguments": "Arguments of the command, as JSON.",
    "user": "Unix user that gave the command.",
    "contributions": "Number of updates that were kept.",
    "count": "Number of files, pictures, messages, answers or contributions.",
    "damaged": "Cached features that were damaged on disk and are computed again; left out if there "
    "are none.",
    "days_left": "Whole days until it expires.",
    "device": "Id of the device.",
    "devices": "Number of updates in the round.",
    "domain": "The `domain` of the device's configuration.",
    "done": "Pictures whose features are ready, also from the cache.",
    "enrolled": "Number of devices that are enrolled and not revoked.",
    "encoded": "Pictures that went through the encoder now.",
    "ends": "Date of expiry; of several certificates, the first date.",
    "epoch": "Number that grows with each start of the coordinator; the higher one wins.",
    "deleted": "Number of features that were deleted.",
    "error": "Mean squared error on the validation pictures; without any, on the training pictures.",
    "fleet": "Name of the fleet.",
    "folder": "Folder of the engine.",
    "max_cache_mb": "The setting of this name.",
    "mb": "Size of what the feature cache holds, in megabytes.",
    "folder_away.folder": "The folder of `[data]` or of `[inbox]`.",
    "folder_away.pictures": "Number of pictures that were known in it.",
    "folder_back.folder": "The folder of `[data]` or of `[inbox]`.",
    "group_by": "The setting of this name.",
    "group_too_large.share": "Share of the pictures that the group has, from 0 to 1.",
    "near_copies.of": "Number of test pictures that were looked at.",
    "test_pictures": "Number of test pictures that look like a training picture.",
    "has": "Number of training devices that are online, or of contributions that were kept.",
    "hint": "The next step.",
    "id": "Id of this device.",
    "kept": "Number of updates that were used.",
    "kinds": "File name extensions, sorted.",
    "l2": "Strength of the shrinkage (lambda).",
    "norm": "L2 norm of the update, divided by its weight.",
    "weight": "Weight of the update in the mean.",
    "key": "First digits of the coordinator's key.",
    "left_s": "Seconds that it still takes at this rate.",
    "line": "The line as it was written.",
    "left_out": "True if the device no longer counts.",
    "missed.reason": "`silent`: it sent nothing in this attempt. `late`: it is online, but its "
    "contribution did not come in time. `offline`: it went away. `refused`: its contribution was "
    "refused; `message_refused` says why.",
    "method": "Name of the method.",
    "min_per_class": "The number in `agent.toml`, or a higher one of the plan.",
    "message": "The message, as in sd_notify(3).",
    "missing": "The devices that are waited for, and when each last sent a message, or how far it is with "
    "encoding its pictures. In phase `gathering`, enrolled devices that have never joined this run "
    "are included.",
    "device_refused.count": "Number of hellos of this kind since the last such line.",
    "message_refused.count": "Number of messages of this kind since the last such line. `topic` and "
    "`reason` are those of the last one.",
    "messages_dropped.count": "Number of messages dropped since the last such line.",
    "messages_dropped.device": "Id of the sender. Missing for messages of the coordinator, and for "
    "more senders than are counted one by one.",
    "model": "The model that is used instead; of `answering_with`, the one that answers.",
    "lost": "Number of answers that are not in the file.",
    "state_file_rebuilt.lost": "The parts that are not in the new file.",
    "state_file_rebuilt.kept": "The earlier file; left out if it was missing or empty.",
    "searched_s": "Seconds for which the folder is searched.",
    "waiting": "Number of answers that waited.",
    "model_bytes": "Size of the next model as it is sent.",
    "more": "Number of further devices; ten are named.",
    "not_used.more": "Number of further files and folders; ten are named.",
    "not_used.path": "The file or folder.",
    "picture_skipped.more": "Number of further files and folders; ten are named.",
    "needs": "Number of training devices or contributions that are needed.",
    "path": "File of the model, or of the report.",
    "per_s": "Pictures encoded in a second.",
    "tofa_solved.classes": "Number of classes with training pictures.",
    "tofa_solved.pictures": "Number of training pictures in the sums.",
    "gda_solved.classes": "Number of classes with pictures.",
    "gda_solved.pictures": "Number of pictures in the sums, of both sides.",
    "personal_model_stopped.epoch": "Number of the epoch, from 1.",
    "phase": "Phase of the run: `gathering` or `open`.",
    "pictures": "Number of pictures that are withheld; of `labels_given`, `labels_confirmed` and "
    "`labels_undone`, of those that a person selected.",
    "label": "The class; `null` if labels were taken back or confirmed.",
    "picture": "File of the picture, or its folder.",
    "prior": "Scale of the class texts (tau).",
    "provider": "Provider of the encoder, such as `cpu`, or `openvino-bf16` in bf16.",
    "providers": "Names of the providers, in the order of their trials.",
    "result": "Speed of the provider, or why it is refused.",
    "tried": "Each provider with its speed, or why it is refused.",
    "untried": "Providers that were not tried.",
    "pseudo_pictures": "Number of pictures that the text of a class counts for in its mean.",
    "reason": "The cause, in words.",
    "work": "`training` or `evaluation`.",
    "worker": "The child process: `encoder` or `trainer`.",
    "refused_messages": "Number of messages that were dropped in this process.",
    "roles": "Roles of the device, joined by `+`.",
    "round": "Number of the round. For a model, the number of rounds closed; 0 is the initial model.",
    "rounds": "Number of rounds of the run.",
    "rounds_closed": "Number of rounds already closed, after a restart.",
    "run": "Id of the run.",
    "run_adds": "Classes of the run that this device's bundle lacks; ten are named.",
    "run_lacks": "Classes of this device's bundle that the run lacks; ten are named.",
    "vote_decided.candidate": "Number of the chosen candidate.",
    "vote_decided.temperature": "Factor of its logits.",
    "vote_decided.pictures": "Validation pictures of all devices that voted.",
    "vote_decided.loss": "Mean cross-entropy of the candidate on them, in nats.",
    "vote_decided.zero_shot_loss": "The same for zero-shot CLIP, at its own best temperature.",
    "vote_decided.correct": "Pictures that the candidate classifies correctly.",
    "vote_decided.zero_shot_correct": "Pictures that zero-shot CLIP classifies correctly.",
    "vote_decided.unknown_below": "Threshold of the score: a picture below it is unknown.",
    "vote_decided.removed_unknown": "Share of the pictures that would be unknown without their own "
    "class. It is a guide, and too high for pictures of classes that the model has never met.",
    "vote_decided.hint": "Why no vote was possible, and what to do.",
    "run_done.rounds": "Number of rounds closed.",
    "share": "Weight of the Gaussian head relative to the class texts.",
    "seconds": "Duration in seconds; for a round, since it was opened.",
    "signal": "Name of the signal.",
    "of": "`model` or `update`.",
    "parts_lost.count": "Number of missing chunks.",
    "unlabelled": "Pictures without a label, if there are any.",
    "skipped": "Pictures, and folders of pictures, that cannot be read.",
    "takes": "How long it takes, in words.",
    "test": "Number of test pictures.",
    "certificate_ends.devices": "Devices whose certificates expire first, each with the date.",
    "too_few_enrolled.devices": "The setting `devices` under `[rules]`.",
    "topic": "MQTT topic of the message.",
    "total": "All pictures of the device.",
    "train": "Number of training pictures.",
    "trainer": "Id of the device of `[trainer]`. `serve` adds this field to all events of that device.",
    "train_pictures": "Training pictures of all devices together.",
    "update_bytes": "Size of the update as it is sent.",
    "updates_bytes": "Size of all kept updates together.",
    "validation_pictures": "Validation pictures of all devices together.",
    "waiting_for": "Training devices that must be online before round 1 opens.",
}
