"""``python -m unike`` is ``unike``."""

from unike.cli import main

if __name__ == "__main__":
    main()
