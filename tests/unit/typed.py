"""Command lines of tests."""


def instead(args: tuple[object, ...], *options: object) -> tuple[object, ...]:
    """A command line whose options take the place of those of the same names; each has a value.

    >>> instead(("bench", "--k", 3, "--seed", 0), "--k", 4)
    ('bench', '--seed', 0, '--k', 4)
    """
    kept = list(args)
    for name in options[::2]:
        if name in kept and name != "--set":
            place = kept.index(name)
            del kept[place : place + 2]
    return (*kept, *options)
