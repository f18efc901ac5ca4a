"""Where log objects come from when there is no shop at hand: a simulated one, and a real retailer's year."""

from datetime import date


def object_key(day: date, name: str) -> str:
    """The key of a log object of a day, in the layout that the default settings expect."""
    return f"logs/{day:%Y/%m/%d}/{name}.json"
