"""The command `gamecraft`, also as `python -m gamecraft`."""

import sys


def main() -> None:
    """Run the command. Where a package cannot be imported, such as an OpenCV without its libraries, `doctor` still runs."""
    try:
        from pipelines.cli import main as run_command
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("curation", "operators", "pipelines", "synth"):
            raise  # a mistake of ours
        if sys.argv[1:2] == ["doctor"]:
            from pipelines import doctor

            sys.exit(doctor.report())
        sys.stderr.write(f"gamecraft: {error}; `gamecraft doctor` says what to install\n")
        sys.exit(1)
    run_command()


if __name__ == "__main__":
    main()
