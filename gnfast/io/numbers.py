"""Numbers as people read them, in one form wherever a command, a log or a page shows one. Files keep all digits."""

import math


def number(value: float | None, digits: int = 4) -> str:
    """`12.34`, `12,345`, `1.235e15`: significant digits, up to 1e9 no fewer than before the point; `–` for none."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if 10 ** (digits - 1) <= abs(value) < 1e9:
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:,.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def counted(count: int, thing: str) -> str:
    """`1 step`, `1,200 steps`: how many there are of a thing whose plural takes an s."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def fixed(value: float, decimals: int = 4) -> str:
    """`12.3456`: so many decimals, as scores are cited with, where they say something; else as `number`."""
    says = value == 0 or 100 * 10**-decimals <= abs(value) < 10_000
    return f"{value:.{decimals}f}" if says else number(value)


def fixed_with_spread(mean: float, deviation: float) -> str:
    """`12.3456 ± 0.0789`: `fixed` and a deviation, which is 0.0000 beside such a number where it is tiny."""
    shown = fixed(mean)
    return f"{shown} ± {deviation:.4f}" if "." in shown and deviation < 0.01 else f"{shown} ± {fixed(deviation)}"


def with_spread(mean: float, deviation: float) -> str:
    """`1.234 ± 0.056`: two digits of the deviation, and the mean to the same place."""
    place = 1 - math.floor(math.log10(deviation)) if deviation > 0 and math.isfinite(deviation) else 99
    if place > 6 or not abs(mean) < 1e9:
        return f"{number(mean)} ± {number(deviation, 2)}"
    return f"{mean:.{max(0, place)}f} ± {deviation:.{max(0, place)}f}"
