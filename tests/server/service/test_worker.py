"""What a run's worker signs: the submitted plan as it was signed, and what a search makes of it, by another name."""

import json
from pathlib import Path
from typing import Any

from astrofed.server.service.authority import Authority
from astrofed.server.service.home import ServerHome
from astrofed.server.service.jobs import Job
from astrofed.server.service.setup import make_server
from astrofed.server.service.worker import _signer
from astrofed.shared.signed_plan import sign_plan, verify_plan

NOW = 1_800_000_000


def test_every_plan_that_is_sent_is_signed(tmp_path: Path) -> None:
    list(make_server(tmp_path, {"host": "127.0.0.1"}))
    key = Authority(ServerHome(tmp_path).authority).plan_key
    plan = json.dumps({"name": "search", "participants": [{"name": "tess", "data": "planets"}]})
    signed: Any = sign_plan(plan, "search", NOW, NOW + 60, key)
    job = Job(
        run="search",
        plan=plan,
        issued=NOW,
        expires=NOW + 60,
        signature=signed["plan-signature"].hex(),
        federation="default",
        sites={},
        wait_s=1.0,
        submitted=0.0,
    )
    sign = _signer(ServerHome(tmp_path), job)
    assert verify_plan(sign(plan), key.public_key(), NOW).run == "search"
    candidates = [verify_plan(sign(plan.replace("tess", name)), key.public_key(), NOW) for name in ("k2", "keck")]
    assert [json.loads(each.plan)["participants"][0]["name"] for each in candidates] == ["k2", "keck"]
    assert len({each.run for each in candidates} | {"search"}) == 3
