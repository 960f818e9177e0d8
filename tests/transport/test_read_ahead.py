"""Reading ahead: the bytes stay the same, and none of them waits unseen."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_edge.transport import read_ahead
from fedclip_edge.transport.read_ahead import ReadAhead


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, ReadAhead]]:
    ours, theirs = socket.socketpair()
    reader = ReadAhead(theirs)
    reader.setblocking(False)
    yield ours, reader
    ours.close()
    reader.close()


@given(
    st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=8),
    st.lists(st.integers(1, 300), min_size=1, max_size=8),
)
def test_what_is_read_is_what_arrived_in_its_order(sent: list[bytes], sizes: list[int]) -> None:
    ours, theirs = socket.socketpair()
    reader, got, asked = ReadAhead(theirs), b"", 0
    for part in sent:
        ours.sendall(part)
    ours.close()
    while part := reader.recv(size := sizes[asked % len(sizes)]):
        assert len(part) <= size
        got, asked = got + part, asked + 1
    assert got == b"".join(sent)
    assert reader.recv(1) == b""  # the end of the connection is seen again
    reader.close()


def test_pending_counts_what_select_does_not_see(pair: tuple[socket.socket, ReadAhead]) -> None:
    ours, reader = pair
    assert reader.pending() == 0
    ours.sendall(b"abcdef")
    assert reader.pending() == 0  # select() still sees it
    assert reader.recv(2) == b"ab"
    assert reader.pending() == 4
    assert reader.recv(9) == b"cdef"
    assert reader.pending() == 0


def test_with_nothing_there_it_says_so_as_the_socket_does(
    pair: tuple[socket.socket, ReadAhead],
) -> None:
    ours, reader = pair
    with pytest.raises(BlockingIOError):
        reader.recv(1)
    ours.sendall(b"x")
    assert reader.recv(1) == b"x"
    with pytest.raises(BlockingIOError):
        reader.recv(1)


def test_one_that_is_larger_than_the_buffer_comes_in_parts(
    pair: tuple[socket.socket, ReadAhead],
) -> None:
    ours, reader = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * read_ahead._AHEAD_BYTES)
    ours.setblocking(False)
    count = ours.send(bytes(2 * read_ahead._AHEAD_BYTES))
    got = 0
    while got < count:
        part = reader.recv(count)
        assert 0 < len(part) <= read_ahead._AHEAD_BYTES
        got += len(part)
    assert got == count
