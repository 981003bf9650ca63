"""``python -m hambench`` runs the command line without a script on the path, e.g. for ``accelerate launch -m``."""

from hambench.cli import main

if __name__ == "__main__":
    main()
