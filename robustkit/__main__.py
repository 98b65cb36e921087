"""``python -m robustkit`` is the same as ``robustkit``."""


def main() -> None:
    """Run the command line."""
    from robustkit.cli.app import app

    app()


if __name__ == "__main__":
    main()
