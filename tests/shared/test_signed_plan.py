"""A signed plan is accepted for its run and its time, and nothing else is."""

import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from astrofed.shared.keys import new_plan_key
from astrofed.shared.signed_plan import SKEW_S, PlanNotSigned, SignedPlan, sign_plan, verify_plan, with_part

KEY = new_plan_key()
NOW = 1_800_000_000


def test_a_signed_plan_travels_in_a_config_record() -> None:
    record = ConfigRecord({**sign_plan('{"name":"a"}', "run-1", NOW, NOW + 60, KEY), "server-round": 3})
    assert verify_plan(record, KEY.public_key(), NOW + 1) == SignedPlan(
        '{"name":"a"}', '{"name":"a"}', "run-1", NOW, NOW + 60
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("plan", '{"name":"b"}'),
        ("plan-run", "run-2"),
        ("plan-issued", NOW - 1),
        ("plan-expires", NOW + 61),
        ("plan-signature", bytes(64)),
        ("plan-signature", b""),
        ("plan", None),
        ("plan-signature", "text"),
        ("plan-expires", -1),
        ("plan-expires", 2**70),
        ("plan-issued", True),
    ],
)
def test_any_change_is_noticed(key: str, value: object) -> None:
    signed: dict[str, object] = {**sign_plan('{"name":"a"}', "run-1", NOW, NOW + 60, KEY)}
    with pytest.raises(PlanNotSigned):
        verify_plan({**signed, key: value}, KEY.public_key(), NOW)
    with pytest.raises(PlanNotSigned):
        verify_plan({each: signed[each] for each in signed if each != key}, KEY.public_key(), NOW)


def test_another_coordinators_plan_is_refused() -> None:
    with pytest.raises(PlanNotSigned, match="not signed by the coordinator's key"):
        verify_plan(sign_plan("{}", "run", NOW, NOW + 60, new_plan_key()), KEY.public_key(), NOW)


def test_a_plan_out_of_its_time_is_refused_and_the_clocks_are_named() -> None:
    signed = sign_plan("{}", "run", NOW, NOW + 60, KEY)
    verify_plan(signed, KEY.public_key(), NOW - SKEW_S)
    verify_plan(signed, KEY.public_key(), NOW + 60 + SKEW_S)
    with pytest.raises(PlanNotSigned, match="clocks"):
        verify_plan(signed, KEY.public_key(), NOW - SKEW_S - 1)
    with pytest.raises(PlanNotSigned, match="submit it again"):
        verify_plan(signed, KEY.public_key(), NOW + 60 + SKEW_S + 1)


def test_a_part_travels_with_the_plan_that_was_signed() -> None:
    signed = sign_plan("whole", "run", NOW, NOW + 60, KEY)
    assert with_part(signed, "whole") == signed
    found = verify_plan(with_part(signed, "part"), KEY.public_key(), NOW)
    assert (found.plan, found.part) == ("whole", "part")
    with pytest.raises(PlanNotSigned):
        verify_plan({**with_part(signed, "part"), "plan-whole": "part"}, KEY.public_key(), NOW)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_no_two_plans_share_a_signature(plan: str, run: str, other_plan: str, other_run: str) -> None:
    signed = sign_plan(plan, run, NOW, NOW + 60, KEY)
    moved = {**signed, "plan": other_plan, "plan-run": other_run}
    if (plan, run) == (other_plan, other_run):
        verify_plan(moved, KEY.public_key(), NOW)
    else:
        with pytest.raises(PlanNotSigned):
            verify_plan(moved, KEY.public_key(), NOW)
