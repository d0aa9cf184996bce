from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ssai3d_rt.runtime.overlap import ahead, behind

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_the_next_item_is_made_while_the_last_is_used_and_no_further_one() -> None:
    made: list[int] = []
    second = threading.Event()

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    following = ahead(items())
    assert next(following) == 0
    assert second.wait(10)  # made though nobody asked for it
    assert made == [0, 1]
    assert list(following) == [1, 2, 3, 4]


def test_an_item_is_used_while_the_next_is_made_and_no_further_one() -> None:
    made: list[int] = []
    second, release = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                second.set()
            yield number

    def consume(numbers: Iterator[int]) -> list[int]:
        first = next(numbers)
        assert second.wait(10)  # made though this is still busy with the first
        assert not release.wait(0.1)
        assert made == [0, 1]
        return [first, *numbers]

    assert behind(items(), consume) == [0, 1, 2, 3]


def test_an_error_while_making_ends_the_use() -> None:
    used: list[int] = []

    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken source")

    with pytest.raises(ValueError, match="broken source"):
        behind(ahead(items()), used.extend)
    assert used == [1]


def test_an_error_of_the_use_ends_the_making() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    def consume(numbers: Iterator[int]) -> None:
        next(numbers)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        behind(items(), consume)
    assert len(made) <= 3


def test_a_stop_from_the_keyboard_ends_both() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        behind(items(), list)
