"""The entry point, which handles Ctrl-C also while the command line is still being imported."""

import sys


def main() -> None:
    """Run the command in `sys.argv`."""
    try:
        from seq2chat.cli import main as run_command
    except KeyboardInterrupt:
        sys.exit(130)
    run_command()


if __name__ == "__main__":
    main()
