"""Templates of the pages and of the files in a model folder."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

TEMPLATES = Path(__file__).parent


def page_template(name: str) -> Template:
    """The template of a page; values are escaped, and none may be missing.

    Arguments
    ---------
    name : str
        Name of the file beside this one.

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
