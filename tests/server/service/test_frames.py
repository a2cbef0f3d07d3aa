"""Frames come back whole, and a body that ends within one is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrofed.server.service.frames import BadFrames, join_frames, split_frames


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_frames_come_back(frames: list[bytes]) -> None:
    assert [bytes(frame) for frame in split_frames(join_frames(frames))] == frames


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=3), st.data())
def test_a_cut_body_gives_the_first_frames_or_an_error(frames: list[bytes], data: st.DataObject) -> None:
    body = join_frames(frames)
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    whole = [join_frames(frames[:count]) for count in range(len(frames))]
    if cut in whole:
        assert [bytes(frame) for frame in split_frames(cut)] == frames[: whole.index(cut)]
    else:
        with pytest.raises(BadFrames):
            list(split_frames(cut))
