"""Plans of some of another plan's participants."""

from typing import Any


def without_absent(data: dict[str, Any]) -> dict[str, Any]:
    """Drop from a plan what its task and strategy say of participants that are no longer in it."""
    names = {participant["name"] for participant in data["participants"]}
    if isinstance(given := data["task"].get("modalities"), dict):
        data["task"]["modalities"] = {site: own for site, own in given.items() if site in names}
    if isinstance(trust := data["strategy"].get("trust"), dict):
        left = {block: [site for site in sites if site in names] for block, sites in trust.items()}
        data["strategy"]["trust"] = {block: sites for block, sites in left.items() if sites}
    return data
