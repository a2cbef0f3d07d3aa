"""How much memory is free: the least of what the machine has and what control groups leave."""

import os
from pathlib import Path

import pytest

from astrofed.shared import memory
from astrofed.shared.memory import allow, free_memory, readable


def group(folder: Path, limit: str, used: int, idle: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {idle}\nactive_file 7\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 1 MiB free; this process is in the group site/node, of which there is nothing yet."""
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:   1024 kB\n")
    (tmp_path / "own").write_text("0::/site/node\n")
    monkeypatch.setattr(memory, "_MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN", tmp_path / "own")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path / "groups"


def test_without_limits_it_is_the_machine_s(groups: Path) -> None:
    assert free_memory() == 1 << 20
    group(groups / "site" / "node", "max", 3000)
    assert free_memory() == 1 << 20


def test_the_tightest_group_counts_and_pages_of_files_that_lie_idle_don_t(groups: Path) -> None:
    group(groups / "site" / "node", "900000", 700000, idle=100000)
    assert free_memory() == 300000
    group(groups / "site", "1000000", 990000)
    assert free_memory() == 10000
    group(groups / "site", "1000000", 1000001)
    assert free_memory() == 0


def test_a_container_s_own_root_counts(groups: Path) -> None:
    group(groups, "5000", 1000)
    assert free_memory() == 4000


def test_a_process_keeps_within_what_it_may_hold(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = groups.parent / "statm"
    held.write_text("900 30 20 1 0 50 0\n")
    monkeypatch.setattr(memory, "_HELD", held)
    monkeypatch.setattr(memory, "_allowed", [])
    pages = os.sysconf("SC_PAGE_SIZE")
    allow(50 * pages)
    assert free_memory() == 20 * pages
    held.write_text("900 60 20 1 0 50 0\n")
    assert free_memory() == 0


def test_a_kernel_that_says_nothing(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_MACHINE", "_OWN"):
        monkeypatch.setattr(memory, name, groups / "absent")
    assert free_memory() is None


def test_this_machine_has_some() -> None:
    found = free_memory()
    assert found is None or found > 1 << 20


def test_sizes_are_readable() -> None:
    words = [readable(size) for size in (3 << 30, 205 << 20, 12 << 20, 4096)]
    assert words == ["3.0 GiB", "0.2 GiB", "12.0 MiB", "4,096 bytes"]
