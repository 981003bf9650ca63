"""``python -m hambench``: the command line where no script is on the path, as under ``accelerate launch -m``."""

from hambench.cli import main

if __name__ == "__main__":
    main()
