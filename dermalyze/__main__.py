"""`python -m dermalyze`: the command line where nothing is installed, as in an MLflow Project."""

from dermalyze.cli import main

main(prog_name="dermalyze")
