r"""Generated worked arithmetic: questions, steps that are all true, a final answer in \boxed{}. No download, no limit.

Takes the place of the mathematics in the report's corpus (section 4.1), small. Document `i` of a seed is a function of
(seed, i) alone, so any range can be made anywhere. Every `left = right` in a text holds between its two neighbours; a test
evaluates them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MappingProxyType

from rorqual.data.counters import Draws

MOST_DIGITS = 5
PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")
"""Names of the places of a number, from the right."""
_THINGS = ("apples", "books", "coins", "marbles", "pencils", "stamps", "tickets", "shells")
_NAMES = ("Ada", "Ben", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana")


def documents(seed: int, count: int, start: int = 0) -> Iterator[str]:
    """Documents `start` to `start + count - 1` of the seed."""
    for index in range(start, start + count):
        yield document(seed, index)


def document(seed: int, index: int) -> str:
    """One document: two to six worked problems, separated by blank lines."""
    draws, kinds = Draws("arithmetic", seed, index), tuple(_PROBLEMS)
    return "\n".join(_PROBLEMS[kinds[draws.below(len(kinds))]](draws, MOST_DIGITS) for _ in range(draws.between(2, 6)))


def problem(seed: int, index: int, kinds: Sequence[str], digits: int = MOST_DIGITS) -> tuple[str, str]:
    """(kind, text) of one problem of the kinds given, with numbers of at most `digits` digits; a function of its arguments alone."""
    draws = Draws("arithmetic problem", seed, index)
    kind = kinds[draws.below(len(kinds))]
    return kind, _PROBLEMS[kind](draws, digits)


def _number(draws: Draws, digits: int) -> int:
    """A number of one to `digits` digits; each length is equally likely, so short ones are not rare."""
    length = draws.between(1, digits)
    return draws.between(0 if length == 1 else 10 ** (length - 1), 10**length - 1)


def _solved(question: str, steps: list[str], answer: int | str) -> str:
    return "\n".join([f"Question: {question}", *steps, f"Answer: \\boxed{{{answer}}}", ""])


def _addition(draws: Draws, digits: int) -> str:
    a, b = _number(draws, digits), _number(draws, digits)
    return _solved(f"What is {a} + {b}?", [*_add_steps(a, b), f"{a} + {b} = {a + b}"], a + b)


def _add_steps(a: int, b: int) -> list[str]:
    """Digit by digit from the right, with the carry."""
    steps, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        terms = f"{x} + {y}" + (f" + {carry}" if carry else "")
        carry = total // 10
        steps.append(f"{PLACES[place]}: {terms} = {total}" + (f", write {total % 10}, carry 1" if carry else f", write {total}"))
    return steps


def _subtraction(draws: Draws, digits: int) -> str:
    a, b = _number(draws, digits), _number(draws, digits)
    low, high = sorted((a, b))
    steps, borrow = [], 0
    for place in range(len(str(high))):
        x, y = high // 10**place % 10, low // 10**place % 10
        lent = 10 if x - borrow < y else 0
        terms = (f"{x} + 10" if lent else str(x)) + f" - {y}" + (" - 1" if borrow else "")
        steps.append(f"{PLACES[place]}: {terms} = {x + lent - y - borrow}" + (", borrow 1" if lent else ""))
        borrow = 1 if lent else 0
    steps.append(f"{high} - {low} = {high - low}")
    if a < b:
        steps.append(f"{a} is less than {b}, so the sign is minus: {a} - {b} = {a - b}")
    return _solved(f"What is {a} - {b}?", steps, a - b)


def _multiplication(draws: Draws, digits: int) -> str:
    a, b = _number(draws, min(digits, 4)), _number(draws, min(digits, 3))
    parts = [digit * 10**place for place, digit in enumerate(map(int, reversed(str(b)))) if digit] or [0]
    steps = [f"{a} * {part} = {a * part}" for part in parts] if len(parts) > 1 else []
    total = a * parts[0]
    for part in parts[1:]:
        steps.append(f"{total} + {a * part} = {total + a * part}")
        total += a * part
    return _solved(f"What is {a} * {b}?", [*steps, f"{a} * {b} = {total}"], total)


def _division(draws: Draws, digits: int) -> str:
    divisor, quotient = draws.between(2, 99), _number(draws, min(digits, 3))
    rest = draws.below(divisor)
    a = divisor * quotient + rest
    steps = [f"{divisor} * {quotient} = {divisor * quotient}", f"{a} - {divisor * quotient} = {rest}", f"{rest} < {divisor}"]
    return _solved(f"What is the remainder of {a} divided by {divisor}?", [*steps, f"{a} % {divisor} = {rest}"], rest)


def _chain(draws: Draws, digits: int) -> str:
    """Three to five numbers under + and -, from left to right."""
    value = _number(draws, min(digits, 3))
    text, steps = str(value), []
    for _ in range(draws.between(2, 4)):
        term, sign = _number(draws, min(digits, 2)), "+-"[draws.below(2)]
        after = value + term if sign == "+" else value - term
        steps.append(f"{value} {sign} {term} = {after}")
        text, value = f"{text} {sign} {term}", after
    return _solved(f"What is {text}?", [*steps, f"{text} = {value}"], value)


def _precedence(draws: Draws, digits: int) -> str:
    """One product inside a sum, with or without brackets around the sum."""
    a, b, c = _number(draws, min(digits, 2)), _number(draws, min(digits, 2)), draws.between(2, 12)
    if draws.below(2):
        return _solved(
            f"What is {a} + {b} * {c}?",
            [f"{b} * {c} = {b * c}", f"{a} + {b * c} = {a + b * c}", f"{a} + {b} * {c} = {a + b * c}"],
            a + b * c,
        )
    total = (a + b) * c
    return _solved(
        f"What is ({a} + {b}) * {c}?", [f"{a} + {b} = {a + b}", f"{a + b} * {c} = {total}", f"({a} + {b}) * {c} = {total}"], total
    )


def _comparison(draws: Draws, digits: int) -> str:
    a, b = _number(draws, digits), _number(draws, digits)
    if draws.below(2):  # numbers that differ in the last digits only
        b = max(0, a + draws.between(-9, 9))
    sign = "<" if a < b else ">" if a > b else "="
    if len(str(a)) != len(str(b)):
        steps = [f"{a} has {_digits(a)}, {b} has {_digits(b)}"]
    else:
        pairs = [(x, y) for x, y in zip(str(a), str(b), strict=True) if x != y]
        steps = [f"first digits that differ: {pairs[0][0]} and {pairs[0][1]}"] if pairs else ["all digits are the same"]
    answer = str(max(a, b)) if a != b else "equal"
    return _solved(f"Which is larger, {a} or {b}?", [*steps, f"{a} {sign} {b}"], answer)


def _digits(n: int) -> str:
    return "1 digit" if n < 10 else f"{len(str(n))} digits"


def _story(draws: Draws, digits: int) -> str:
    """A few sentences: so many, some more, some given away, perhaps all of it several times."""
    name, thing = _NAMES[draws.below(len(_NAMES))], _THINGS[draws.below(len(_THINGS))]
    have, more = draws.between(2, 90), draws.between(2, 60)
    gone, times = draws.between(1, have + more), draws.between(1, 5)
    left = have + more - gone
    text = f"{name} has {have} {thing}, gets {more} more and gives {gone} away."
    steps = [f"{have} + {more} = {have + more}", f"{have + more} - {gone} = {left}"]
    if times == 1:
        return _solved(f"{text} How many {thing} are left?", steps, left)
    steps.append(f"{left} * {times} = {left * times}")
    return _solved(f"{text} A friend has {times} times what is left. How many {thing} does the friend have?", steps, left * times)


_PROBLEMS: MappingProxyType[str, Callable[[Draws, int], str]] = MappingProxyType(
    {
        "addition": _addition, "subtraction": _subtraction, "multiplication": _multiplication, "remainder": _division, "chain": _chain,
        "precedence": _precedence, "comparison": _comparison, "story": _story,
    }
)  # fmt: skip
KINDS = tuple(_PROBLEMS)
"""Names of the kinds of problems."""
