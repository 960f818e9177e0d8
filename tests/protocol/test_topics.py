"""Topics: each is defined once, and the broker's access list covers exactly these."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.client import topic_matches_sub

from fedclip_edge.errors import PeerError
from fedclip_edge.pki.mosquitto import access_list
from fedclip_edge.protocol import version1
from fedclip_edge.protocol.messages import KINDS
from fedclip_edge.protocol.topics import CHUNK, Topics, matches

LEVEL = st.text("abz09-", min_size=1, max_size=12).map(lambda t: f"a{t}9")
NAMES = ["cam-01", "cam-02"]
LAB = Topics("lab")


@settings(max_examples=50)
@given(LEVEL, LEVEL)
def test_what_is_built_is_parsed_again(fleet: str, device: str) -> None:
    topics = Topics(fleet)
    assert topics.device_of(topics.state(device)) == device
    assert topics.device_of(topics.up(device)) == device


@settings(max_examples=50)
@given(LEVEL, LEVEL, LEVEL)
def test_every_topic_differs_and_every_broker_can_carry_it(
    fleet: str, device: str, other: str
) -> None:
    topics = Topics(fleet)
    of = [topics.coordinator_state, topics.manifest, topics.model]
    for name in {device, other}:
        of += [topics.state(name), topics.up(name), topics.down(name)]
    assert len(set(of)) == len(of)
    for topic in of:
        assert topic.count("/") <= 5
        assert not set(topic) & set("+#\0")
        assert not topic.startswith(("/", "$"))
        assert len(topic.encode()) <= 256  # the limit of AWS IoT


@pytest.mark.parametrize(
    "topic",
    [
        LAB.coordinator_state,
        LAB.manifest,
        LAB.model,
        LAB.down("cam-01"),
        Topics("other").up("cam-01"),
        "/" + LAB.up("cam-01"),
        LAB.up("cam-01") + "/",
        LAB.up("cam-01/x"),
        LAB.up(""),
        LAB.up("+"),
        LAB.up("Cam"),
        LAB.up("a" * 65),
        LAB.up("cam\n"),
        "cam-01/up",
        "",
    ],
)
def test_other_topics_are_no_devices(topic: str) -> None:
    with pytest.raises(PeerError, match="topic"):
        LAB.device_of(topic)


@settings(max_examples=100)
@given(st.text(max_size=30) | st.text("abup/state+#-", max_size=20).map(lambda t: LAB.up(t)[:-3]))
def test_any_topic_is_parsed_or_refused(topic: str) -> None:
    try:
        device = LAB.device_of(topic)
    except PeerError:
        return
    assert topic in (LAB.state(device), LAB.up(device))


LEVELS = st.lists(st.sampled_from(["a", "b", "", "$s"]), min_size=1, max_size=5).map("/".join)
PATTERNS = st.tuples(
    st.lists(st.sampled_from(["a", "b", "", "$s", "+"]), max_size=5), st.sampled_from([[], ["#"]])
).map(lambda parts: "/".join(parts[0] + parts[1]))


@settings(max_examples=500)
@given(PATTERNS.filter(bool), LEVELS.filter(bool))
def test_a_pattern_gets_what_paho_says_it_gets(pattern: str, topic: str) -> None:
    assert matches(pattern, topic) == topic_matches_sub(pattern, topic)


def allowed(user: str, access: str, topic: str) -> bool:
    """Decide as mosquitto does with the access list (mosquitto.conf(5), acl_file)."""
    section = ""
    for line in access_list("lab").splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] == "user":
            section = words[1]
            continue
        kind, granted, pattern = words
        mine = kind == "pattern" or section == user
        granted_here = topic_matches_sub(pattern.replace("%u", user), topic)
        if mine and granted_here and granted in (access, "readwrite"):
            return True
    return False


def every_topic() -> list[str]:
    topics = [LAB.coordinator_state, LAB.manifest, LAB.model, LAB.blob("a" * 64)]
    old = LAB.earlier
    topics += [old.coordinator_state, f"{old.prefix}/round", old.model]
    makers = (LAB.state, LAB.up, LAB.down, old.state, old.up, old.down)
    return topics + [make(name) for name in NAMES for make in makers]


@pytest.mark.parametrize("device", NAMES)
def test_a_device_reads_what_it_subscribes_to_and_writes_its_own(device: str) -> None:
    reads = {topic for topic in every_topic() if allowed(device, "read", topic)}
    assert reads == {*LAB.for_device(device, "a" * 64), *version1.for_device("lab", device)}
    writes = {topic for topic in every_topic() if allowed(device, "write", topic)}
    old = LAB.earlier
    assert writes == {make(device) for make in (LAB.state, LAB.up, old.state, old.up)}


def test_the_coordinator_reads_what_it_subscribes_to_and_writes_what_it_says() -> None:
    subscribed = LAB.for_coordinator()
    heard = {t for t in every_topic() if any(topic_matches_sub(s, t) for s in subscribed)}
    reads = {topic for topic in every_topic() if allowed("coordinator", "read", topic)}
    # All clients may read broadcasts.
    shared = {LAB.model, LAB.blob("a" * 64), LAB.manifest, LAB.earlier.coordinator_state}
    assert reads == heard | shared | {f"{LAB.earlier.prefix}/round", LAB.earlier.model}
    writes = {topic for topic in every_topic() if allowed("coordinator", "write", topic)}
    said = {LAB.coordinator_state, LAB.manifest, LAB.model, LAB.blob("a" * 64)}
    said |= {make(name) for name in NAMES for make in (LAB.down, LAB.earlier.down)}
    assert writes == said


def test_the_coordinator_may_listen_to_single_devices() -> None:
    some = LAB.for_coordinator(["cam-01"])
    own = (make("cam-01") for make in (LAB.state, LAB.up, LAB.earlier.up))
    assert some == (LAB.coordinator_state, *own)


def test_a_topic_names_its_device() -> None:
    for name in NAMES:
        makers = (LAB.state, LAB.up, LAB.down, LAB.earlier.up)
        assert [LAB.owner(make(name)) for make in makers] == [name] * 4
    others = (LAB.manifest, LAB.model, LAB.coordinator_state, Topics("other").up("cam-01"))
    wrong = ("", LAB.up("No Id"), LAB.up(""), LAB.up("cam-01") + "/x", LAB.up("a" * 65))
    assert {LAB.owner(topic) for topic in (*others, *wrong)} == {""}


def test_a_stranger_may_do_nothing_to_others() -> None:
    for topic in every_topic():
        assert not allowed("mallory", "write", topic)
        if "/dev/" in topic:
            assert not allowed("mallory", "read", topic)


def test_nobody_may_use_a_topic_of_another_fleet() -> None:
    other = Topics("other")
    own = [other.coordinator_state, other.manifest, other.model]
    own += [make("cam-01") for make in (other.state, other.up, other.down)]
    for user in ("cam-01", "coordinator"):
        for access in ("read", "write"):
            assert not [topic for topic in own if allowed(user, access, topic)]


def test_who_was_revoked_is_denied_everything_and_nobody_else_is() -> None:
    assert access_list("lab", ["cam-01", "cam-02"]) == access_list("lab") + (
        "\nuser cam-01\ntopic deny #\n\nuser cam-02\ntopic deny #\n"
    )


@pytest.mark.parametrize(
    ("topic", "kinds"),
    [
        (LAB.coordinator_state, {"coordinator"}),
        (LAB.manifest, {"manifest"}),
        (LAB.model, {CHUNK}),
        (LAB.blob("a" * 64), {CHUNK}),
        (LAB.state("cam-01"), {"device"}),
        (LAB.up("cam-01"), {"hello", "offer", "want", "report", CHUNK}),
        (LAB.down("cam-01"), {"coordinator", "manifest", "want", "kept", "refused"}),
        (Topics("other").manifest, set()),
        ("up", set()),
    ],
)
def test_each_topic_carries_its_own_kinds(topic: str, kinds: set[str]) -> None:
    for kind in (*KINDS, CHUNK):
        if kind in kinds:
            LAB.check_kind(topic, kind)
        else:
            with pytest.raises(PeerError, match=f"message kind '{kind}' is not allowed on topic"):
                LAB.check_kind(topic, kind)
