"""`catalogzero new`: a vendor's package from the template."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from catalogzero.cli.output import JsonFlag, print_answer, print_json
from catalogzero.errors import ConfigError


def new(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DIR] [KEY=VALUE]...",
            help="Folder in which the package's folder is made (default: this one), and answers.",
        ),
    ] = None,
    *,
    no_input: Annotated[bool, typer.Option("--no-input", help="Ask nothing.")] = False,
    answers_help: Annotated[bool, typer.Option("--answers", help="List the answers.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a package of your own: a handler that processes and uploads, tests, manifest, CLI.

    Example: catalogzero new --no-input vendor_name=Acme product_name='Acme Processor'
    """
    from catalogzero.entry import scaffold

    template = scaffold.template_folder()
    if answers_help:
        words, defaults = scaffold.prompts(template), scaffold.complete({}, template)
        allowed = scaffold.allowed_words(template)
        if as_json:
            about = {k: {"default": v, "meaning": words[k]} for k, v in defaults.items()}
            print_json({k: {**v, "allowed": allowed.get(k)} for k, v in about.items()})
            return
        for name, default in defaults.items():
            one_of = f"\n    one of: {', '.join(allowed[name])}" if name in allowed else ""
            typer.echo(f"{name}={default}\n    {words[name]}{one_of}")
        return
    try:
        parent, answers = parse(arguments or [])
        # Only what has no good default is asked for; each default may follow from answers before.
        for name in () if no_input else scaffold.asked(answers):
            if name not in answers:
                words, full = scaffold.prompts(template), scaffold.complete(answers, template)
                answers[name] = typer.prompt(words[name], default=full[name], err=True)
        folder = scaffold.scaffold(answers, parent, template)
    except ConfigError as error:
        typer.echo(f"catalogzero new: nothing was written.\n{error}", err=True)
        raise typer.Exit(2) from error
    text = f"{folder} is made. Next: cd {folder}, and read DEVELOPMENT.md"
    print_answer({"folder": str(folder)}, text, json=as_json)


def parse(arguments: Iterable[str]) -> tuple[Path, dict[str, str]]:
    """The folder and the answers of a command line.

    Raises:
        ConfigError: Two folders, or an answer given twice.
    """
    folders: list[str] = []
    answers: dict[str, str] = {}
    for argument in arguments:
        name, mark, value = argument.partition("=")
        if not mark:
            folders.append(argument)
        elif name in answers:
            raise ConfigError(f"{name} is given twice; give it once.")
        else:
            answers[name] = value
    if len(folders) > 1:
        raise ConfigError(
            f"{folders[1]!r} is not an answer; write key=value, quoted where it has blanks."
        )
    return Path(folders[0] if folders else "."), answers
