"""Sealed messages come out as they went in, or not at all."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astrofed.client.service.sealed import Sealed, Torn

SEALED = Sealed(b"outside", b"tree", {"a" * 64: b"one", "b" * 64: b""})


@given(st.binary(max_size=20), st.binary(max_size=20), st.dictionaries(st.text(max_size=4), st.binary(max_size=20)))
@settings(max_examples=50, deadline=None)
def test_what_went_in_comes_out(envelope: bytes, tree: bytes, objects: dict[str, bytes]) -> None:
    sealed = Sealed(envelope, tree, objects)
    assert Sealed.from_bytes(sealed.to_bytes()) == sealed


@pytest.mark.parametrize("end", range(len(SEALED.to_bytes())))
def test_a_file_cut_short_is_noticed(end: int) -> None:
    with pytest.raises(Torn):
        Sealed.from_bytes(SEALED.to_bytes()[:end])


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_other_bytes_are_noticed(data: bytes) -> None:
    for each in (data, b"astrofed sealed 1\n" + data, b"astrofed sealed 1\n\x00\x00\x00\x0b[1,2,[[3]]]" + data):
        with pytest.raises(Torn):
            Sealed.from_bytes(each)
