"""Send tasks to the worker of ``tasks.py``: ``python send.py [ROUNDS]``."""

import sys

from tasks import add, echo, error, greet, sleep, unsteady


def main(rounds):
    for number in range(rounds):
        add.delay(number, number)
        echo.delay("anybody there?", timestamp=True)
        greet.delay(f"visitor {number}")
        if number % 5 == 0:
            error.delay("on purpose")
            unsteady.delay(3)
            sleep.delay(0.2)
    print(f"Sent {rounds} rounds.")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
