"""Texts with blanks: the pages, and what a model folder is filled from."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

TEMPLATES = Path(__file__).parent


def page_template(name: str) -> Template:
    """A page, in which whatever is filled in is escaped and nothing may be missing.

    Arguments
    ---------
    name : str
        Of the file beside this one.

    Returns
    -------
    jinja2.Template

    Example
    -------
    >>> "&lt;Ann&gt;" in page_template("page.html").module.note("<Ann>")
    True
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template(name)
