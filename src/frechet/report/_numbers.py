"""Numbers as a reader wants them: rounded to what their error bar supports, never to look better than they are.

An interval that is symmetric is written ``12.3 ± 0.4``, any other ``12.3 [11.9, 13.1]``; error bars and
ends of intervals round outward. The output is plain text with ``e`` exponents; `typeset` turns it
into typography for the page.
"""

from __future__ import annotations

import math
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from frechet.report._schema import Cost, Eigenvalue, Measured

SUPERSCRIPT = str.maketrans("+-0123456789", "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DIGITS = 6  # significant digits shown at most
SURE = 5e-4  # relative; an error below this does not move the fourth digit by more than half
NEGLIGIBLE = 1e-4  # relative; a smaller error bar is written as a power of ten: 9.71235 ± 2e-6


def number(x: float, digits: int = 3) -> str:
    """`x` to `digits` significant digits: ``0.0123``, ``1230``, ``1.20e-6``, ``inf``."""
    if not math.isfinite(x):
        return "nan" if math.isnan(x) else ("inf" if x > 0 else "-inf")
    if x == 0:
        return "0"
    rounded = _decimal(x).quantize(Decimal(1).scaleb(_exponent(x) - digits + 1))
    return _plain(rounded, rounded.adjusted() - digits + 1, _scale(rounded))


def measured(m: Measured) -> str:
    """`m` with its interval and unit: ``12.3 ± 0.4``, ``12.3 [11.9, 13.1]``, ``12.3456 (exact)``."""
    unit = f" {m.unit}" if m.unit else ""
    if m.value == m.upper == math.inf and m.lower == 0:
        return "not resolved"
    if m.value == math.inf and math.isfinite(m.lower):
        return f"above {number(m.lower)}{unit}"
    if not math.isfinite(m.value):
        return ("no finite value" if math.isnan(m.value) else number(m.value)) + unit
    if m.exact and _negligible(m.value, m.upper - m.lower):
        return f"{short(m.value)}{unit}"
    return bracketed(m.value, m.lower, m.upper) + unit


def headline(m: Measured) -> str:
    """`m` as a headline tells it: at most four digits, and no error bar where all of them are sure."""
    sure = math.isfinite(m.value) and m.upper - m.lower <= 2 * SURE * abs(m.value)
    unit = f" {m.unit}" if m.unit else ""
    return f"{_trimmed(number(m.value, 4))}{unit}" if sure else measured(m)


def headline_eigenvalue(e: Eigenvalue) -> str:
    """The same for an eigenvalue with its residual."""
    return _trimmed(number(e.value, 4)) if e.residual <= SURE * abs(e.value) else eigenvalue(e)


def bracketed(value: float, lower: float, upper: float) -> str:
    """`value` with [`lower`, `upper`], as ± where that is symmetric to within a tenth of its half-width."""
    below, above = value - lower, upper - value
    if below < 0 or above < 0 or not math.isfinite(below + above) or abs(below - above) > 0.05 * (below + above):
        return f"{number(value)} [{_end(lower, upper, value)}, {_end(upper, lower, value)}]"
    return with_error(value, max(below, above))


def with_error(value: float, error: float) -> str:
    """``value ± error``: the error to two digits, rounded up, and the value to the same place."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{number(value)} ± {number(error)}"
    if error == 0:
        return short(value)
    if _negligible(value, error):
        return f"{short(value)} ± {_rounded(error, _exponent(error), ROUND_CEILING)}"
    place = _exponent(error) - 1
    scale = _scale(_decimal(max(abs(value), error)))
    left = _plain(_quantized(value, place, ROUND_HALF_EVEN).scaleb(-scale), place - scale, 0)
    right = _plain(_quantized(error, place, ROUND_CEILING).scaleb(-scale), place - scale, 0)
    return f"({left} ± {right})e{scale}" if scale else f"{left} ± {right}"


def short(x: float) -> str:
    """`x` to at most six digits, without trailing zeros."""
    return _trimmed(number(x, DIGITS))


def _trimmed(text: str) -> str:
    digits, _, exponent = text.partition("e")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{exponent}" if exponent else digits


def eigenvalue(e: Eigenvalue) -> str:
    """The eigenvalue with its residual as error bar."""
    return with_error(e.value, e.residual)


def percent(share: float) -> str:
    """A share in percent, the extremes never rounded to 0 or 100: ``< 0.1 %``, ``> 99.9 %``."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{number(100 * share, 3 if abs(share) > 0.1 else 2)} %"


def count(n: int) -> str:
    """An integer with its thousands set apart by commas."""
    return f"{n:,}"


def plural(n: int, noun: str) -> str:
    """``1 product``, ``1,200 products``, ``3 passes``."""
    return f"{count(n)} {noun if n == 1 else noun + ('es' if noun.endswith(('s', 'ch')) else 's')}"


def seconds(t: float) -> str:
    """A duration: ``3.2 ms``, ``1.4 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if not math.isfinite(t):
        return number(t)
    if t < 0.9995:
        return f"{number(1000 * t, 2)} ms"
    if t < 59.95:
        return f"{number(t, 2 if t < 9.95 else 3)} s"
    whole = round(t)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(n: int | None) -> str:
    """A number of bytes in decimal units: ``310 MB``; "unknown" for None."""
    if n is None:
        return "unknown"
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if n >= 10**power:
            return f"{number(n / 10**power, 2 if n < 10 ** (power + 1) else 3)} {unit}"
    return f"{n} B"


def cost(c: Cost) -> str:
    """One line: products, passes over the data, seconds, peak memory, and with whom they were shared."""
    parts = [plural(c.products, "product"), plural(c.data_passes, "pass"), seconds(c.seconds)]
    if c.peak_bytes is not None:
        parts.append(size(c.peak_bytes))
    return ", ".join(parts) + (f" (shared: {c.shared})" if c.shared else "")


def typeset(text: str) -> str:
    """`text` with exponents as powers of ten, true minus signs, an infinity sign and thin spaces in thousands."""
    text = re.sub(r"(?<![\w.])1e([+-]?\d+)", lambda m: "10" + m[1].translate(SUPERSCRIPT), text)
    text = re.sub(r"(?<=[\d)])e([+-]?\d+)", lambda m: "×10" + m[1].translate(SUPERSCRIPT), text)
    text = re.sub(r"(?<![\w.,])-(?=\d|inf\b)", "\u2212", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "\u202f", text)
    return re.sub(r"\binf\b", "∞", text)


def _decimal(x: float) -> Decimal:
    """`x` as it prints: the binary digits beyond that would push an outward rounding one step too far."""
    return Decimal(repr(float(x)))


def _exponent(x: float) -> int:
    return _decimal(x).adjusted()


def _scale(x: Decimal) -> int:
    """The power of ten to factor out: 0 where plain decimals read well."""
    return 0 if -4 <= x.adjusted() < DIGITS else x.adjusted()


def _negligible(value: float, error: float) -> bool:
    return error <= NEGLIGIBLE * abs(value)


def _end(end: float, other: float, value: float) -> str:
    """One end of an interval, rounded away from the other end to two digits of the spread."""
    if not math.isfinite(end) or end == 0:
        return number(end)
    spread = abs(end - other) if math.isfinite(other) else abs(end - value)
    place = _exponent(spread) - 1 if spread else _exponent(end) - DIGITS + 1
    place = min(max(place, _exponent(end) - DIGITS + 1), _exponent(end) - 1)
    return _rounded(end, place, ROUND_FLOOR if end < other else ROUND_CEILING)


def _quantized(x: float, place: int, rounding: str) -> Decimal:
    return _decimal(x).quantize(Decimal(1).scaleb(place), rounding=rounding)


def _rounded(x: float, place: int, rounding: str) -> str:
    rounded = _quantized(x, place, rounding)
    return _plain(rounded, place, _scale(rounded))


def _plain(x: Decimal, place: int, scale: int) -> str:
    """`x`, already rounded at 10**place, in digits without a sign on zero, times 10**scale."""
    text = f"{abs(x).scaleb(-scale):.{max(0, scale - place)}f}"
    return ("-" if x < 0 else "") + text + (f"e{scale}" if scale else "")
