"""Numbers as people read them in a report: three significant digits, true minus signs, powers of ten, relations."""

import math

_MINUS = "\N{MINUS SIGN}"
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_TIMES = 2.5  # from this ratio on, people read "5 times" more easily than "400 % above"


def figure(value: float, digits: int = 3) -> str:
    """Return a number with some significant digits: "0.713", "12.3", "1 240", "3.21 × 10⁻⁴"."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    mantissa, exponent = f"{abs(value):.{digits - 1}e}".split("e")
    power = int(exponent)
    if -3 <= power < 5:
        text = f"{float(f'{mantissa}e{power}'):,.{max(digits - 1 - power, 0)}f}".replace(",", _SPACE)
    else:
        text = f"{mantissa}{_SPACE}×{_SPACE}10{str(power).translate(_RAISED)}"
    return text if value > 0 else _MINUS + text


def percent(share: float) -> str:
    """Return a share as a percentage: "93 %", "0.4 %"."""
    value = 100 * share
    text = f"{value:.1f}" if 0 < abs(value) < 0.95 else f"{value:.0f}"
    return f"{text}{_SPACE}%".replace("-", _MINUS)


def change(value: float, base: float) -> str:
    """Return how far a value lies from a base, for tables: "−29 %", "+3 %", "× 5.2"."""
    if base <= 0:
        return "–"
    ratio = value / base
    if ratio >= _TIMES:
        return f"×{_SPACE}{figure(ratio, 2)}"
    rounded = round(100 * (ratio - 1))
    return f"{'+' if rounded > 0 else ''}{rounded}{_SPACE}%".replace("-", _MINUS)


def relation(value: float, base: float, name: str) -> str:
    """Return the same in words: "29 % below persistence", "level with persistence", "5.2 times persistence"."""
    ratio = value / base
    if ratio >= _TIMES:
        return f"{figure(ratio, 2)} times {name}"
    rounded = round(100 * abs(ratio - 1))
    if rounded == 0:
        return f"level with {name}"
    return f"{rounded}{_SPACE}% {'below' if ratio < 1 else 'above'} {name}"


def size(count: int) -> str:
    """Return a number of bytes in decimal units: "12.3 MB"."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f}{_SPACE}B" if unit == "B" else f"{figure(value)}{_SPACE}{unit}"


def count(number: int) -> str:
    """Return a whole number with its thousands set apart: "123 456"."""
    return f"{number:,}".replace(",", _SPACE)


def duration(seconds: float) -> str:
    """Return a time span: "8.2 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 60:
        return f"{figure(seconds, 2)}{_SPACE}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{_SPACE}min {whole % 60}{_SPACE}s"
    return f"{whole // 3600}{_SPACE}h {whole % 3600 // 60}{_SPACE}min"


def listed(items: list[str]) -> str:
    """Return words as a list: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def spans(rounds: list[int]) -> str:
    """Return round numbers, ascending, in short: "1–4, 7, 9–12"."""
    parts: list[list[int]] = []
    for number in rounds:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts)
