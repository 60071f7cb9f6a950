"""Units with their exact definitions, numbers in words and Roman numerals, for checking shipped rows by computing them.

Factors are to the SI unit of the dimension. Sources: BIPM SI Brochure (9th ed.); NIST Handbook 44, appendix C
(international yard and pound, US customary volumes).
"""

import re
from collections.abc import Callable
from fractions import Fraction as F

FACTORS: dict[str, tuple[str, F]] = {
    "metre": ("length", F(1)), "kilometre": ("length", F(1000)), "centimetre": ("length", F(1, 100)),
    "millimetre": ("length", F(1, 1000)), "inch": ("length", F("0.0254")), "foot": ("length", F("0.3048")),
    "yard": ("length", F("0.9144")), "mile": ("length", F("1609.344")), "nautical mile": ("length", F(1852)),
    "gram": ("mass", F(1, 1000)), "kilogram": ("mass", F(1)), "milligram": ("mass", F(1, 10**6)),
    "tonne": ("mass", F(1000)), "ounce": ("mass", F("0.028349523125")), "pound": ("mass", F("0.45359237")),
    "stone": ("mass", 14 * F("0.45359237")),
    "litre": ("volume", F(1, 1000)), "millilitre": ("volume", F(1, 10**6)), "cubic metre": ("volume", F(1)),
    "us gallon": ("volume", F("0.003785411784")), "us quart": ("volume", F("0.003785411784") / 4),
    "us pint": ("volume", F("0.003785411784") / 8), "us cup": ("volume", F("0.003785411784") / 16),
    "us fluid ounce": ("volume", F("0.003785411784") / 128), "tablespoon": ("volume", F("0.003785411784") / 256),
    "teaspoon": ("volume", F("0.003785411784") / 768), "imperial pint": ("volume", F("0.00056826125")),
    "second": ("time", F(1)), "minute": ("time", F(60)), "hour": ("time", F(3600)), "day": ("time", F(86400)),
    "week": ("time", F(604800)), "millisecond": ("time", F(1, 1000)),
    "square metre": ("area", F(1)), "square kilometre": ("area", F(10**6)), "square centimetre": ("area", F(1, 10**4)),
    "square foot": ("area", F("0.3048") ** 2), "square inch": ("area", F("0.0254") ** 2), "hectare": ("area", F(10**4)),
    "acre": ("area", F("4046.8564224")), "square mile": ("area", F("1609.344") ** 2),
    "metre per second": ("speed", F(1)), "kilometre per hour": ("speed", F(1000, 3600)),
    "mile per hour": ("speed", F("1609.344") / 3600), "knot": ("speed", F(1852, 3600)),
    "byte": ("data", F(1)), "bit": ("data", F(1, 8)), "kilobyte": ("data", F(1000)), "megabyte": ("data", F(10**6)),
    "gigabyte": ("data", F(10**9)), "terabyte": ("data", F(10**12)), "kibibyte": ("data", F(1024)),
    "mebibyte": ("data", F(1024**2)), "gibibyte": ("data", F(1024**3)),
    "joule": ("energy", F(1)), "kilojoule": ("energy", F(1000)), "kilowatt-hour": ("energy", F(3600000)),
    "kilocalorie": ("energy", F(4184)), "watt": ("power", F(1)), "kilowatt": ("power", F(1000)),
    "pascal": ("pressure", F(1)), "kilopascal": ("pressure", F(1000)), "bar": ("pressure", F(100000)),
    "degree": ("angle", F(1)), "full turn": ("angle", F(360)), "right angle": ("angle", F(90)),
    "dozen": ("count", F(12)), "gross": ("count", F(144)), "score": ("count", F(20)), "piece": ("count", F(1)),
}  # fmt: skip


# The scales whose zero differs: to kelvin and back.
SCALES: dict[str, tuple[Callable[[F], F], Callable[[F], F]]] = {
    "kelvin": (lambda degrees: degrees, lambda kelvin: kelvin),
    "celsius": (lambda degrees: degrees + F("273.15"), lambda kelvin: kelvin - F("273.15")),
    "fahrenheit": (
        lambda degrees: (degrees - 32) * F(5, 9) + F("273.15"),
        lambda kelvin: (kelvin - F("273.15")) * F(9, 5) + 32,
    ),
}


def convert(value: float | str, source: str, target: str) -> F:
    """`value` of unit `source` in unit `target`, exactly; also celsius, fahrenheit and kelvin.

    >>> convert(12, "knot", "kilometre per hour")
    Fraction(2778, 125)
    >>> convert("98.6", "fahrenheit", "celsius")
    Fraction(37, 1)
    """
    exact = F(str(value))
    if source in SCALES:
        return SCALES[target][1](SCALES[source][0](exact))
    (dimension, factor), (other, divisor) = FACTORS[source], FACTORS[target]
    if dimension != other:
        raise ValueError(f"{source} is a {dimension}, {target} a {other}")
    return exact * factor / divisor


ONES = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def words(number: int) -> str:
    """A whole number from 0 to below a million in English words.

    >>> words(21_142)
    'twenty-one thousand one hundred forty-two'
    """
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    return f"{words(number // unit)} {name}" + (f" {words(number % unit)}" if number % unit else "")


SIGNS = (
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
)  # fmt: skip


def roman(number: int) -> str:
    """A whole number from 1 to 3999 as a Roman numeral.

    >>> roman(1994)
    'MCMXCIV'
    """
    numeral = ""
    for value, sign in SIGNS:
        numeral, number = numeral + sign * (number // value), number % value
    return numeral


def numbers(text: str) -> list[str]:
    """Decimal numbers written in digits in `text`, without their thousands commas.

    >>> numbers("1,250 g at 3.5, or 7")
    ['1250', '3.5', '7']
    """
    found: list[str] = re.findall(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?", text)
    return [number.replace(",", "") for number in found]


def shows(text: str, value: object) -> bool:
    """Whether `text` states `value`: a number at the precision it is written with, anything else as a substring.

    >>> shows("It is about 8.05 km.", convert(5, "mile", "kilometre")), shows("It is 8.06 km.", F("8.04672"))
    (True, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | F):
        return str(value).lower() in text.lower()
    in_words = isinstance(value, int) and abs(value) < 10**6 and words(abs(value))
    if in_words and re.search(rf"\b{re.escape(in_words)}\b", text.lower()):
        return True
    return any(matches(number, value) for number in numbers(text))


def matches(number: str, value: float | F) -> bool:
    """Whether the written `number` is `value`, sign aside, rounded to as many decimals as it is written with.

    >>> matches("42.2", F("42.16")), matches("42", F("42.16")), matches("8", F("8.4"))
    (True, True, False)
    """
    decimals = len(number.partition(".")[2])
    distance = abs(F(number) - abs(F(value)))
    if distance > F(1, 2 * 10**decimals) + F(1, 10**9):  # a float's own error is allowed for
        return False
    # Rounded to a whole number, a small value has lost too much to count as stated.
    return decimals > 0 or distance < F(1, 20) or abs(F(value)) >= 20
