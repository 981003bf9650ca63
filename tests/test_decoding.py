"""The contract: what a session asks for, and how it is answered for one sequence."""

import pytest

from hambench.decoding import Alone, Request, answered


class Count(Request):
    """Answers with the next number; fails at three."""

    def __init__(self, numbers):
        self.numbers = numbers

    def answer(self):
        number = next(self.numbers)
        if number == 3:
            raise ArithmeticError("three")
        return number


def asks(numbers, times):
    total = 0
    for _ in range(times):
        total += yield Count(numbers)
    return total


def test_requests_are_answered_in_order_and_the_generators_result_is_given():
    assert answered(asks(iter(range(3)), 3)) == 0 + 1 + 2


def test_what_is_no_generator_is_the_result_itself():
    assert answered((1, 2)) == (1, 2)
    assert answered(None) is None


def test_a_generator_that_asks_for_nothing_gives_its_result():
    assert answered(asks(iter(()), 0)) == 0


def test_a_failure_is_raised_where_the_session_asked():
    def careful():
        try:
            yield from asks(iter((3,)), 1)
        except ArithmeticError as error:
            # it goes on: what it asks next is answered
            more = yield Alone(lambda: 39)
            return f"{error} and {more}"

    assert answered(careful()) == "three and 39"
    with pytest.raises(ArithmeticError, match="three"):
        answered(asks(iter((1, 3)), 2))


def test_requests_are_answered_one_after_the_other_unless_their_class_can_do_better():
    requests = [Count(iter((7,))), Count(iter((8,)))]
    assert requests[0].together is None
    assert Count.answer_together(requests) == [7, 8]
    assert list(Count(iter((9,))).pieces()) == [9]
