"""Choice: what every planning rule returns, a value and the sentence that says why."""

from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Choice(NamedTuple):
    """A chosen value and its reason."""

    value: Any
    reason: str


def section(cls: type[T], choices: dict[str, Choice]) -> T:
    """The plans section `cls` filled with the chosen values. Raises ValueError if a field has no choice, or the reverse."""
    names = {f.name for f in fields(cls)}
    if names != set(choices):
        raise ValueError(f"{cls.__name__} and its rules differ in the fields {sorted(names ^ set(choices))}.")
    return cls(**{name: choice.value for name, choice in choices.items()})


def numbers(values) -> str:
    """Numbers of one line of a reason: 2 x 2 x 7.7."""
    return " x ".join(f"{value:.3g}" for value in values)
