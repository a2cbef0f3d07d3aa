"""A site's key for shared noise: made once, its owner's alone, and what two sites make of theirs is the same."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from astrofed.client.privacy.noise_keys import NOISE_KEY, Peers, noise_key, public_digits
from astrofed.shared.keys import KeyUnusable, private_pem


def test_the_key_is_made_once_whoever_asks_first(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: public_digits(noise_key(tmp_path / "home")), range(32)))
    assert len(found) == 1 and [path.name for path in (tmp_path / "home").iterdir()] == [NOISE_KEY]
    assert stat.S_IMODE((tmp_path / "home" / NOISE_KEY).stat().st_mode) == 0o600


def test_two_sites_have_one_key_in_common_and_opposite_signs(tmp_path: Path) -> None:
    keys = {name: public_digits(noise_key(tmp_path / name)) for name in "abc"}
    a, b = Peers(tmp_path / "a", keys), Peers(tmp_path / "b", keys)
    (one, adds), (other, takes) = a.pair_key("b"), b.pair_key("a")
    assert one == other and len(one) == 32 and adds is not takes
    assert a.pair_key("c")[0] != one
    assert a.check_values(["b"])[0].removeprefix("b=") == b.check_values(["a"])[0].removeprefix("a=")
    assert one.hex() not in a.check_values(["b"])[0] and a.check_values("bc")[0][2:] != a.check_values("bc")[1][2:]


def test_a_key_of_another_kind_or_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / NOISE_KEY
    path.write_bytes(private_pem(Ed25519PrivateKey.generate()))
    path.chmod(0o600)
    with pytest.raises(KeyUnusable, match="holds no X25519 key"):
        noise_key(tmp_path)
    path.unlink()
    noise_key(tmp_path)
    path.chmod(0o644)
    with pytest.raises(KeyUnusable, match="chmod 600"):
        noise_key(tmp_path)
