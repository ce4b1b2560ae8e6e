"""`python -m gamecraft` is the command `gamecraft`."""

from pipelines.cli import main

if __name__ == "__main__":
    main()
