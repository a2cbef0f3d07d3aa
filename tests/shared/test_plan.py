"""The plan: what it accepts, how it names a mistake, and that it travels unchanged."""

import math
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from astrofed.shared.errors import UserMistake
from astrofed.shared.overrides import BadOverride
from astrofed.shared.plan import Named, Plan, PlanError, Section, Strategy, check_options, load_plan, plan_from_json

CONFIGS = Path(__file__).parents[2] / "configs"
PRIVATE = {"unit": "planet", "epsilon": 8, "delta": 1e-5}


def mapping(**changes: Any) -> dict[str, Any]:
    plan = {
        "name": "trial",
        "task": {"name": "datacube", "months_in": 2},
        "model": "datacube-net",
        "participants": [
            {"name": "north", "data": "bundled:worlds/earthlike"},
            {"name": "south", "data": "south.zarr", "attack": {"name": "sign-flip", "scale": 4.0}},
        ],
    }
    return {**plan, **changes}


def participants(**second: Any) -> list[dict[str, Any]]:
    return [{"name": "north", "data": "n"}, {"name": "south", "data": "s", **second}]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_plans_that_ship_are_valid(path: Path) -> None:
    assert load_plan(path).participants


def test_defaults_and_short_forms() -> None:
    plan = load_plan(mapping())
    assert (plan.mode, plan.seed, plan.rounds, plan.strategy.name) == ("federated", 0, 1, "FedAvg")
    assert plan.model == Named(name="datacube-net")
    assert plan.task.options == {"months_in": 2}
    attack = plan.participants[1].attack
    assert attack is not None and attack.options == {"scale": 4.0}


def test_a_plan_can_not_be_changed() -> None:
    plan = load_plan(mapping())
    with pytest.raises(ValidationError, match="frozen"):
        plan.rounds = 9
    with pytest.raises(ValidationError, match="frozen"):
        plan.participants[0].name = "other"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ronds": 3}, "ronds: unknown key; did you mean 'rounds'?"),
        ({"zzz": 3}, "zzz: unknown key; valid keys: name, mode, seed"),
        ({"training": {"epocs": 1}}, r"training\.epocs: unknown key; did you mean 'epochs'?"),
        ({"engine": {"worker": 1}}, r"engine\.worker: unknown key; did you mean 'workers'?"),
        ({"physics": {"weight": {}}}, r"physics\.weight: unknown key; did you mean 'weights'?"),
        ({"privacy": {"epsilonn": 8, "delta": 1e-5, "unit": "planet"}}, r"privacy\.epsilonn: .* mean 'epsilon'?"),
        ({"participants": participants(atack="ipm")}, r"participants\.1\.atack: unknown key; did you mean 'attack'?"),
        ({"participants": participants(attack={"nmae": "ipm"})}, r"participants\.1\.attack\.name: .*'nmae' meant"),
        ({"rounds": "three"}, "rounds: .*valid integer.*given: 'three'"),
        ({"rounds": 0}, r"rounds: .*greater than or equal to 1 \(given: 0\)"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"mode": "fedrated"}, "mode: .*'single', 'federated'.*given: 'fedrated'"),
        ({"training": 3}, r"training: expected a table of keys \(given: 3\)"),
        ({"task": 3}, r"task: expected a table of keys \(given: 3\)"),
        ({"task": {"name": "datacube", "options": 3}}, r"task\.options: expected a table of keys \(given: 3\)"),
        ({"training": {"learning_rate": math.nan}}, r"training\.learning_rate: .*\(given: nan\)"),
        ({"training": {"weight_decay": math.inf}}, r"training\.weight_decay: .*finite"),
        ({"training": {"learning_rate": [1e-3]}}, r"training\.learning_rate: .*valid number \(given: \[0.001\]\)"),
        ({"name": "../elsewhere"}, "name: .*given: '../elsewhere'"),
        ({"participants": []}, "participants: .*at least 1 item"),
        ({"participants": participants(data="")}, r"participants\.1\.data: .*at least 1 character"),
        ({"participants": participants(name="north")}, "participants: the name 'north' stands twice"),
        ({"participants": [{"name": "a", "data": "d", "role": "evaluate"}]}, "none has role = 'train'"),
        ({"mode": "single"}, "mode 'single' takes one training participant, the plan has 2"),
        ({"privacy": {"delta": 1e-5, "unit": "planet"}}, "privacy: give exactly one of epsilon and noise_multiplier"),
        ({"privacy": {**PRIVATE, "clipping": "layers"}}, r"privacy\.clipping: .*'flat', 'per-layer' or 'adaptive'"),
        ({"privacy": {**PRIVATE, "clipping_quantile": 0.9}}, "clipping_quantile is for clipping = 'adaptive'"),
        ({"privacy": {**PRIVATE, "micro_batch": 0}}, r"privacy\.micro_batch: .*greater than or equal to 1"),
        (
            {"privacy": PRIVATE, "training": {"gradient_clip": 1}},
            r"gradient_clip = 1\.0 .*clipping_norm",
        ),
        ({"privacy": {**PRIVATE, "sampling": "shuffled"}}, r"privacy\.sampling: .*Poisson.*leave the key out"),
    ],
)
def test_a_mistake_is_named_with_key_value_and_mend(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words) as caught:
        load_plan(mapping(**changes))
    assert isinstance(caught.value, UserMistake) and caught.value.exit_code == 2


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(PlanError, match=r"(?s)name: required, but missing.*ronds: unknown key"):
        load_plan({**{k: v for k, v in mapping().items() if k != "name"}, "ronds": 3})


def test_paths_are_taken_from_the_plan_s_folder(tmp_path: Path) -> None:
    toml = 'name = "t"\ntask = "planets"\nmodel = "mlp"\n'
    for data in ("bundled:planets/k2", "near.parquet", "../up.parquet", "/abs.parquet"):
        toml += f'[[participants]]\nname = "p{len(toml)}"\ndata = "{data}"\n'
    (tmp_path / "plan.toml").write_text(toml)
    paths = [participant.data for participant in load_plan(tmp_path / "plan.toml").participants]
    assert paths == ["bundled:planets/k2", f"{tmp_path}/near.parquet", f"{tmp_path}/../up.parquet", "/abs.parquet"]


def test_a_plan_that_lies_in_configs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PlanError, match=r"did you mean configs/quickstart\.toml\?"):
        load_plan(Path("quickstart.toml"))


def test_a_file_that_is_no_plan_says_so(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text("name = ")
    with pytest.raises(PlanError, match=r"quikstart.toml does not exist; did you mean .*quickstart\.toml"):
        load_plan(tmp_path / "quikstart.toml")
    with pytest.raises(PlanError, match="does not exist; give the path"):
        load_plan(tmp_path / "nowhere" / "plan.toml")
    (tmp_path / "pyproject.toml").write_text("")
    with pytest.raises(PlanError, match=r"nope\.toml does not exist; give the path"):
        load_plan(tmp_path / "nope.toml")
    with pytest.raises(PlanError, match="is not valid TOML"):
        load_plan(tmp_path / "quickstart.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(PlanError, match=r"latin\.toml can't be read"):
        load_plan(tmp_path / "latin.toml")
    with pytest.raises(PlanError, match="can't be read"):
        load_plan(tmp_path)


def test_trainers_follow_a_copy() -> None:
    """A remembered list of trainers would survive into a copy with other participants."""
    plan = load_plan(mapping())
    assert [p.name for p in plan.trainers] == ["north", "south"]
    assert [p.name for p in plan.model_copy(update={"participants": plan.participants[:1]}).trainers] == ["north"]
    assert plan == load_plan(mapping())


values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
keys = st.text("abcdefghij_-", min_size=1, max_size=6).filter(lambda key: key not in ("name", "options", "f"))


@settings(suppress_health_check=[HealthCheck.too_slow])  # of a busy machine
@given(options=st.dictionaries(keys, values, max_size=4), seed=st.integers(0, 2**63))
def test_a_plan_travels_unchanged(options: dict[str, Any], seed: int) -> None:
    """JSON as on the wire, and plain data as in TOML, give back the same plan, whatever a plug-in's options hold."""
    plan = load_plan(mapping(seed=seed, task={"name": "t", **options}, strategy={"name": "s", "f": 1, **options}))
    assert plan_from_json(plan.to_json()) == plan
    assert load_plan(plan.to_dict()) == plan
    assert Plan.model_validate(plan.to_dict()) == plan


class _Options(Section):
    depth: Annotated[int, Field(ge=1)] = 1
    knots: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dept": 2}, r"^strategy\.dept: unknown key for 'mine'; did you mean 'depth'\?$"),
        ({"quorm": 2}, r"strategy\.quorm: unknown key for 'mine'; did you mean 'quorum'\?"),
        ({"zzz": 2}, r"strategy\.zzz: unknown key for 'mine'; valid keys: depth, knots, rule"),
        ({"depth": 0}, r"strategy\.depth: .*greater than or equal to 1 \(given: 0\)"),
        ({"knots": [1.0, "x"]}, r"strategy\.knots\.1: .*valid number.*\(given: 'x'\)"),
        ({"depth": 0, "dept": 1}, r"strategy\.depth: .*; strategy\.dept: "),
    ],
)
def test_an_option_of_a_plugin_is_named_with_its_section(options: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        check_options(_Options, Strategy(name="mine", options=options), "strategy")


def test_options_that_fit_are_returned() -> None:
    assert check_options(_Options, Named(name="mine", options={"knots": [1, 2]}), "task") == _Options(knots=(1.0, 2.0))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("rounds=7", ("rounds",), 7),
        ("name = other plan", ("name",), "other plan"),
        ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
        ("strategy=krum", ("strategy",), {"name": "krum"}),
        ("model.depth=2", ("model",), {"name": "datacube-net", "depth": 2}),
        ('task.variables=["ta", "ua"]', ("task", "variables"), ["ta", "ua"]),
        ("physics.weights.dry-mass=0.5", ("physics", "weights", "dry-mass"), 0.5),
        ("participants.south.attack.scale=1", ("participants", 1, "attack", "scale"), 1),
        ("participants.1.data=elsewhere", ("participants", 1, "data"), "elsewhere"),
        ('participants."south".data=elsewhere', ("participants", 1, "data"), "elsewhere"),
        ("participants.south.attack=ipm", ("participants", 1, "attack"), {"name": "ipm"}),
    ],
)
def test_overrides_reach_every_level(override: str, path: tuple[str | int, ...], value: Any) -> None:
    found: Any = load_plan(mapping(), [override]).to_dict()
    for part in path:
        found = found[part]
    assert {k: found[k] for k in value} == value if isinstance(value, dict) else found == value


def test_an_empty_override_removes() -> None:
    plan = load_plan(mapping(), ["participants.south.attack=", "task.months_in="])
    assert plan.participants[1].attack is None and plan.task.options == {}
    assert [p.name for p in load_plan(mapping(), ["participants.north="]).participants] == ["south"]


def test_later_overrides_win_and_the_source_stays_as_it_was() -> None:
    source = mapping()
    assert load_plan(source, ["rounds=2", "rounds=3", "task.months_in=9"]).rounds == 3
    assert source == mapping()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds", "--set 'rounds': expected key=value"),
        ("=3", "expected key=value"),
        ("participants.west.data=x", "no item 'west'; give one of: north, south; or its number, 0 to 1"),
        ("participants.2.data=x", "no item '2'"),
        ("rounds.x=1", "'rounds' holds 1, which has no keys below it"),
        ("task.months=", "there is no 'months' to remove; there are: name, months_in"),
    ],
)
def test_an_override_that_leads_nowhere_says_so(override: str, words: str) -> None:
    with pytest.raises(BadOverride, match=words):
        load_plan(mapping(rounds=1), [override])


@pytest.mark.parametrize("override", ["ronds=3", "participants.south.atack=ipm", "training.epocs=2"])
def test_an_override_can_not_bring_in_an_unknown_key(override: str) -> None:
    with pytest.raises(PlanError, match="unknown key; did you mean"):
        load_plan(mapping(), [override])
