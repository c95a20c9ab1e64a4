"""Cost tables as files: CSV where the name ends in .csv, else JSON."""

from __future__ import annotations

from pathlib import Path

from apq_optuna._files import replace_file
from apq_optuna.errors import CostTableError
from apq_optuna.hardware.files.csv_file import csv_of, from_csv
from apq_optuna.hardware.files.json_file import from_json, json_of
from apq_optuna.hardware.files.rows import Contents


def write_table(path: Path, contents: Contents) -> None:
    """Writes a table's file, whole or not at all.

    Raises:
        OSError: The place cannot be written to.
    """
    text = csv_of(contents) if path.suffix.lower() == ".csv" else json_of(contents)
    replace_file(path, text.encode())


def read_table(path: Path) -> Contents:
    """Reads what `write_table` wrote, a CSV made by hand, or the published dictionary.

    Raises:
        CostTableError: Not such a file; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a mark before the text
    except FileNotFoundError as error:
        journal = path.with_name(path.name + ".journal")
        hint = f"; its build was stopped ({journal}): run it again" if journal.exists() else ""
        raise CostTableError(f"there is no cost table {path}{hint}") from error
    except UnicodeDecodeError as error:
        raise CostTableError(f"{path} is not text in UTF-8; save it so: {error}") from error
    except OSError as error:
        raise CostTableError(f"{path} cannot be read: {error}") from error
    if text.startswith("PK"):
        raise CostTableError(f"{path} is a spreadsheet or an archive; save it as .csv")
    return from_csv(path, text) if path.suffix.lower() == ".csv" else from_json(path, text)
